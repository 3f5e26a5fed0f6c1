"""NATS: reachable, with JetStream, and with the stream that the listener writes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Final

from nats.aio.client import Client

from tocsin.broker import JetStreamError, api, stream_state
from tocsin.cli.examine import durability
from tocsin.cli.examine.finding import Finding, bad, good
from tocsin.cli.examine.nats_session import NO_RIGHT_FIX, UNREACHABLE, nats_session, no_right
from tocsin.errors import TocsinError, Unavailable
from tocsin.settings import Settings
from tocsin.subject import stream_subjects

PART: Final = "NATS"
OLDEST: Final = (2, 12)
"""The first version with atomic batches."""


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    shown = ", ".join(server.rpartition("@")[2] for server in settings.nats_servers)
    async with contextlib.AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(nats_session(settings, "tocsin doctor"))
        except UNREACHABLE as error:
            yield bad(PART, f"{shown} does not answer: {error}", "start NATS with JetStream (nats-server -js), or correct TOCSIN_NATS_URL")
            return
        async for finding in _server(client, settings, shown):
            yield finding


async def _server(client: Client, settings: Settings, shown: str) -> AsyncIterator[Finding]:
    version = client.connected_server_version
    if (version.major, version.minor) < OLDEST:
        yield bad(PART, f"{shown}: nats-server {version.major}.{version.minor}.{version.patch} has no atomic batches", "upgrade nats-server to 2.12 or later")
    else:
        yield good(PART, f"{shown}: nats-server {version.major}.{version.minor}.{version.patch}")
    if client.max_payload < settings.max_event:
        fix = f"max_payload: {int(settings.max_event)} in nats-server's configuration and a restart of it, or TOCSIN_MAX_EVENT={client.max_payload}"
        yield bad(PART, f"max_payload is {client.max_payload}, less than TOCSIN_MAX_EVENT={int(settings.max_event)}", fix)
    else:
        yield good(PART, f"max_payload {client.max_payload:,} bytes holds the largest event ({int(settings.max_event):,})")
    try:
        await api(client, "INFO")
    except JetStreamError as error:
        yield bad(PART, f"JetStream is not for this account: {error.description}", "enable JetStream for the account of the user in TOCSIN_NATS_URL")
        return
    except Unavailable:
        if (refused := no_right(client)) is not None:
            yield bad(PART, refused, NO_RIGHT_FIX)
            return
        yield bad(PART, "JetStream is not enabled", "start nats-server with -js, or write `jetstream {}` into its configuration")
        return
    yield good(PART, "JetStream is enabled")
    yield await durability.examine(client, settings)
    async for finding in _stream(client, settings):
        yield finding


async def _stream(client: Client, settings: Settings) -> AsyncIterator[Finding]:
    try:
        name, source = settings.stream_name, settings.source_name
    except TocsinError:
        return  # without a source there is no name; the source's own findings say so
    state = await stream_state(client, name)
    if state is None:
        yield bad(PART, f"the stream {name} does not exist", "start the listener, which makes it: tocsin listener")
        return
    wanted, bound = set(stream_subjects(settings.subject_prefix, source)), set(state.config.get("subjects") or ())
    if wanted - bound:
        yield bad(PART, f"the stream {name} does not bind {', '.join(sorted(wanted - bound))}", "start the listener, which mends it: tocsin listener")
    elif state.epoch is None:
        yield bad(PART, f"the stream {name} has no epoch: it was not made by a listener", "set TOCSIN_STREAM to a name of its own, or remove that stream")
    else:
        yield good(PART, f"the stream {name}: {state.messages:,} messages, {state.bytes:,} bytes, epoch {state.epoch}")
    for field, allowed, setting in (
        ("storage", "file", ""),
        ("retention", "limits", ""),
        ("discard", "old", ""),
        ("num_replicas", settings.stream_replicas, "TOCSIN_STREAM_REPLICAS"),
        ("max_bytes", int(settings.stream_max_bytes), "TOCSIN_STREAM_MAX_BYTES"),
        ("max_age", int(settings.stream_max_age.total_seconds() * 1e9), "TOCSIN_STREAM_MAX_AGE"),
    ):
        if (present := state.config.get(field)) != allowed:
            fix = f"restart the listener, which sets it{f', or set {setting} to what is meant' if setting else ''}"
            if field in ("storage", "retention"):
                fix = (
                    f"it can't be changed in place: set TOCSIN_STREAM to a new name, or remove {name} and restart the listener, which fills it from the journal"
                )
            yield bad(PART, f"the stream {name} has {field} {present}, not {allowed}", fix)
