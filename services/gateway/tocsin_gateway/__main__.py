"""The gateway's process: its composition root."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import structlog
from fastapi import FastAPI

from tocsin import broker
from tocsin.access import token_rules
from tocsin.certificate import certificate
from tocsin.service import bind, configure_logging, run_service, serve_http
from tocsin.settings import Settings, load_settings
from tocsin.subject import encode_token
from tocsin.tracing import Exporter
from tocsin_gateway.access import Access, check_exposure
from tocsin_gateway.app import STATIC, create_app
from tocsin_gateway.catalogue import Catalogue
from tocsin_gateway.gateway import Gateway
from tocsin_gateway.limits import Limits, chosen_limits
from tocsin_gateway.server import protocols
from tocsin_gateway.state import State, state_route
from tocsin_gateway.tracing import Tracing
from tocsin_gateway.why import Why, why_route

log = structlog.get_logger("tocsin.gateway")


async def serve(settings: Settings, stop: asyncio.Event, limits: Limits | None = None) -> None:
    """Serve until `stop`. Raises OperatorError for settings that can't be served."""
    access = _access(settings)
    check_exposure(settings.gateway_host, needs_token=access.needs_token, insecure=settings.insecure)
    tls = certificate(settings.gateway_tls_cert, settings.gateway_tls_key)
    scheme = "http" if tls is None else "https"
    sock = bind(settings.gateway_host, settings.gateway_port, "TOCSIN_GATEWAY_PORT")
    limits = limits or chosen_limits(settings.limits)
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
                database_url=settings.database_url,
            )
            http_protocol, socket_protocol = protocols(limits, gateway.over_limit)
            async with asyncio.TaskGroup() as group:
                exporting = group.create_task(_traced(gateway, settings.otlp_url)) if settings.otlp_url is not None else None
                running = group.create_task(gateway.run())
                announcing = group.create_task(_announce(link, gateway, settings.source_name))
                renewing = group.create_task(tls.keep_fresh()) if tls is not None else None
                drained = asyncio.Event()
                ending = group.create_task(_drain(stop, gateway, settings.gateway_drain.total_seconds(), drained))
                log.info(
                    "gateway",
                    address=f"{scheme}://{settings.gateway_host}:{sock.getsockname()[1]}",
                    stream=settings.stream_name,
                )
                await serve_http(
                    _app(settings, gateway, link),
                    sock,
                    drained,
                    ws=socket_protocol,
                    http=http_protocol,
                    ws_max_size=limits.message_bytes,
                    ws_per_message_deflate=False,
                    ws_ping_interval=20.0,
                    ws_ping_timeout=20.0,
                    timeout_graceful_shutdown=2,
                    log_level="warning",
                    server_header=False,
                    proxy_headers=bool(settings.trusted_proxies),
                    forwarded_allow_ips=list(settings.trusted_proxies),
                    **({"ssl_context_factory": lambda *_: tls.context} if tls is not None else {}),
                )
                if renewing is not None:
                    renewing.cancel()
                if exporting is not None:
                    exporting.cancel()
                running.cancel()
                announcing.cancel()
                ending.cancel()
    finally:
        sock.close()


def _app(settings: Settings, gateway: Gateway, link: broker.Link) -> FastAPI:
    prefix, source, stream = settings.subject_prefix, settings.source_name, settings.stream_name
    catalogue = Catalogue(STATIC / "asyncapi.json", settings.database_url, prefix, source)
    state = State(gateway, link, stream, prefix, source)
    why = Why(gateway, link, stream, f"{prefix}.{encode_token(source)}")
    return create_app(gateway, catalogue=catalogue, routers=(state_route(gateway, state), why_route(why)))


async def _traced(gateway: Gateway, url: str) -> None:
    exporter = Exporter(url, "tocsin-gateway")
    gateway.hub.on_traced = Tracing(exporter).deliver
    await exporter.run()


async def _announce(link: broker.Link, gateway: Gateway, source: str) -> None:
    await link.connected.wait()

    def measured() -> dict[str, Any]:
        return {"ready": gateway.readiness().ready, **gateway.describe()}

    title = "Events to WebSockets and server-sent events"
    async with broker.announce(link.client, "tocsin-gateway", title, gateway.status, source=source, measured=measured):
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
