"""The gateway's process: its composition root."""

from __future__ import annotations

import asyncio
import pickle
import sys
import tempfile
from pathlib import Path
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
from tocsin_gateway.admission.access import Access, check_exposure
from tocsin_gateway.admission.headcount import SharedHeadcount
from tocsin_gateway.app import STATIC, create_app
from tocsin_gateway.colleagues import Worker, metrics_route, tell
from tocsin_gateway.endpoints.catalogue import Catalogue
from tocsin_gateway.endpoints.state import State, state_route
from tocsin_gateway.endpoints.why import Why, why_route
from tocsin_gateway.gateway import Gateway
from tocsin_gateway.limits import Limits, chosen_limits
from tocsin_gateway.server import protocols
from tocsin_gateway.tracing import Tracing
from tocsin_gateway.workers import supervise

log = structlog.get_logger("tocsin.gateway")


async def serve_workers(settings: Settings, stop: asyncio.Event, count: int) -> None:
    """Serve until `stop` by that many processes that share the port. Raises OperatorError for settings that can't be served."""
    check_exposure(settings.gateway_host, needs_token=_access(settings).needs_token, insecure=settings.insecure)
    certificate(settings.gateway_tls_cert, settings.gateway_tls_key)
    chosen_limits(settings.limits)
    # Alone first, since a port that is shared is never "taken".
    bind(settings.gateway_host, settings.gateway_port, "TOCSIN_GATEWAY_PORT").close()
    with tempfile.TemporaryDirectory(prefix="tocsin-gateway-") as folder:
        sock = bind(settings.gateway_host, settings.gateway_port, "TOCSIN_GATEWAY_PORT", shared=True, listen=False)
        try:
            chosen = settings.model_copy(update={"gateway_port": sock.getsockname()[1]})
            log.info("workers", count=count, port=chosen.gateway_port)
            given = pickle.dumps((chosen, count, folder))
            path = Worker(0, count, Path(folder)).headcount
            SharedHeadcount.create(path, count)
            forget = SharedHeadcount(path, 0, count).forget
            await supervise(("-m", "tocsin_gateway", "worker"), given, count, stop, settings.gateway_drain.total_seconds(), forget)
        finally:
            sock.close()


async def serve(settings: Settings, stop: asyncio.Event, limits: Limits | None = None, worker: Worker | None = None) -> None:
    """Serve until `stop`, as one of several workers or alone. Raises OperatorError for settings that can't be served."""
    access = _access(settings)
    check_exposure(settings.gateway_host, needs_token=access.needs_token, insecure=settings.insecure)
    tls = certificate(settings.gateway_tls_cert, settings.gateway_tls_key)
    scheme = "http" if tls is None else "https"
    sock = bind(settings.gateway_host, settings.gateway_port, "TOCSIN_GATEWAY_PORT", shared=worker is not None)
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
                headcount=None if worker is None else SharedHeadcount(worker.headcount, worker.number, worker.count),
            )
            http_protocol, socket_protocol = protocols(limits, gateway.over_limit)
            async with asyncio.TaskGroup() as group:
                exporting = group.create_task(_traced(gateway, settings.otlp_url)) if settings.otlp_url is not None else None
                running = group.create_task(gateway.run())
                announcing = group.create_task(_announce(link, gateway, settings.source_name))
                renewing = group.create_task(tls.keep_fresh()) if tls is not None else None
                telling = group.create_task(tell(worker, gateway.registry)) if worker is not None else None
                drained = asyncio.Event()
                ending = group.create_task(_drain(stop, gateway, settings.gateway_drain.total_seconds(), drained))
                log.info(
                    "gateway",
                    address=f"{scheme}://{settings.gateway_host}:{sock.getsockname()[1]}",
                    stream=settings.stream_name,
                )
                await serve_http(
                    _app(settings, gateway, link, worker),
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
                if telling is not None:
                    telling.cancel()
                running.cancel()
                announcing.cancel()
                ending.cancel()
    finally:
        sock.close()


def _app(settings: Settings, gateway: Gateway, link: broker.Link, worker: Worker | None) -> FastAPI:
    prefix, source, stream = settings.subject_prefix, settings.source_name, settings.stream_name
    catalogue = Catalogue(STATIC / "asyncapi.json", gateway.watched, prefix, source)
    state = State(gateway, link, stream, prefix, source)
    why = Why(gateway, link, stream, f"{prefix}.{encode_token(source)}")
    common = () if worker is None else (metrics_route(worker, gateway.registry),)
    return create_app(gateway, catalogue=catalogue, routers=(*common, state_route(gateway, state), why_route(why)))


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


async def _serve_until_parted(settings: Settings, stop: asyncio.Event, worker: Worker) -> None:
    """Our standard input ends when the process that started us does."""
    loop, stdin = asyncio.get_running_loop(), sys.stdin.fileno()

    def parted() -> None:
        loop.remove_reader(stdin)
        stop.set()

    loop.add_reader(stdin, parted)
    await serve(settings, stop, worker=worker)


def main() -> None:
    """`python -m tocsin_gateway`; with `worker <number>`, one of several, which is told the rest on its standard input."""
    if sys.argv[1:2] == ["worker"]:
        settings, count, folder = pickle.load(sys.stdin.buffer)  # noqa: S301  # from our parent
        worker = Worker(int(sys.argv[2]), count, Path(folder))
        configure_logging(settings.log_level, settings.log_format)
        sys.exit(run_service(lambda stop: _serve_until_parted(settings, stop, worker)))
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)
    sys.exit(run_service(lambda stop: serve(settings, stop)))


if __name__ == "__main__":
    main()
