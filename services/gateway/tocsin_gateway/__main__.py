"""The gateway's process: its composition root."""

from __future__ import annotations

import asyncio
import sys

import structlog

from tocsin import broker
from tocsin.access import token_rules
from tocsin.certificate import certificate
from tocsin.service import bind, configure_logging, run_service, serve_http
from tocsin.settings import Settings, load_settings
from tocsin_gateway.access import Access, check_exposure
from tocsin_gateway.app import create_app
from tocsin_gateway.gateway import Gateway
from tocsin_gateway.limits import Limits
from tocsin_gateway.server import FrameProtocol, with_deadline

log = structlog.get_logger("tocsin.gateway")


async def serve(settings: Settings, stop: asyncio.Event, limits: Limits | None = None) -> None:
    """Serve until `stop`. Raises OperatorError for settings that can't be served."""
    access = _access(settings)
    check_exposure(settings.gateway_host, needs_token=access.needs_token, insecure=settings.insecure)
    tls = certificate(settings.gateway_tls_cert, settings.gateway_tls_key)
    scheme = "http" if tls is None else "https"
    sock = bind(settings.gateway_host, settings.gateway_port, "TOCSIN_GATEWAY_PORT")
    limits = limits or Limits()
    try:
        async with broker.connecting(settings.nats_servers, name="tocsin-gateway", login=settings.nats_login) as link:
            gateway = Gateway(
                link,
                settings.stream_name,
                settings.source_name,
                access,
                limits,
                settings.allowed_origins,
                trusts_names=settings.insecure,
                replicas=settings.stream_replicas,
            )
            async with asyncio.TaskGroup() as group:
                running = group.create_task(gateway.run())
                announcing = group.create_task(_announce(link, gateway))
                renewing = group.create_task(tls.keep_fresh()) if tls is not None else None
                drained = asyncio.Event()
                ending = group.create_task(_drain(stop, gateway, settings.gateway_drain.total_seconds(), drained))
                log.info(
                    "gateway",
                    address=f"{scheme}://{settings.gateway_host}:{sock.getsockname()[1]}",
                    stream=settings.stream_name,
                )
                await serve_http(
                    create_app(gateway),
                    sock,
                    drained,
                    ws=FrameProtocol,
                    http=with_deadline(limits.handshake_seconds),
                    ws_max_size=limits.message_bytes,
                    ws_per_message_deflate=False,
                    ws_ping_interval=20.0,
                    ws_ping_timeout=20.0,
                    timeout_graceful_shutdown=2,
                    log_level="warning",
                    server_header=False,
                    **({"ssl_context_factory": lambda *_: tls.context} if tls is not None else {}),
                )
                if renewing is not None:
                    renewing.cancel()
                running.cancel()
                announcing.cancel()
                ending.cancel()
    finally:
        sock.close()


async def _announce(link: broker.Link, gateway: Gateway) -> None:
    await link.connected.wait()
    async with broker.announce(link.client, "tocsin-gateway", "Events to WebSockets and server-sent events", gateway.status):
        await asyncio.Event().wait()


async def _drain(stop: asyncio.Event, gateway: Gateway, seconds: float, drained: asyncio.Event) -> None:
    await stop.wait()
    await gateway.drain(seconds)
    drained.set()


def _access(settings: Settings) -> Access:
    return Access(settings.subject_prefix, settings.source_name, token_rules(settings))


def main() -> None:
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)
    sys.exit(run_service(lambda stop: serve(settings, stop)))


if __name__ == "__main__":
    main()
