"""A listener's life: standby until it has the lead, then relay until something breaks, then all over again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from typing import Final

import asyncpg
import nats.errors
import structlog

from tocsin import postgres
from tocsin.broker import JetStreamError, Link, StreamState
from tocsin.errors import OperatorError, Unavailable
from tocsin.position import new_epoch
from tocsin.retry import forever
from tocsin.subject import encode_token
from tocsin_listener import stream
from tocsin_listener.carried import Carried
from tocsin_listener.doorbell import Doorbell
from tocsin_listener.follow import follow
from tocsin_listener.install import require_installed, require_own_journal
from tocsin_listener.journal import SESSION, Journal
from tocsin_listener.leader import Deposed, Lead
from tocsin_listener.message import Address
from tocsin_listener.meters import Meters
from tocsin_listener.progress import BEGINNING, Cursor, Identity, Progress
from tocsin_listener.publisher import Refused, publisher
from tocsin_listener.relay import Relay
from tocsin_listener.resume import Plan, plan
from tocsin_listener.stream import Limits
from tocsin_listener.tracing import Tracing
from tocsin_listener.upkeep import retain, sing

STANDBY_PAUSE: Final = 0.5
CHECK_EVERY: Final = 60.0

AGAIN: Final = (Unavailable, JetStreamError, Refused, asyncpg.PostgresError, asyncpg.InternalClientError, nats.errors.Error, *postgres.TRANSIENT)
"""What a new session may mend."""

NATS_AGAIN: Final = (Unavailable, JetStreamError, Refused, nats.errors.Error, TimeoutError)
"""What the same session to PostgreSQL may mend, by reading back where the stream ends."""

log = structlog.get_logger("tocsin.listener")


@dataclass(frozen=True, slots=True)
class Config:
    """What the listener is told: `source` and `prefix` stand in subjects, `doorbell` is auto, on or off."""

    database_url: str
    source: str
    prefix: str
    stream: str
    limits: Limits
    channels: tuple[str, ...] = ()
    doorbell: str = "auto"
    max_event: int = 900 << 10


@dataclass(frozen=True, slots=True)
class Reading:
    """The connections that read: `reader` listens and reads small differences, `bulk` pages through large ones."""

    reader: asyncpg.Connection
    bulk: asyncpg.Connection


class Listener:
    """`run` never ends by itself; what happens is seen in `meters`."""

    def __init__(self, config: Config, link: Link, meters: Meters, tracing: Tracing | None = None) -> None:
        self._config = config
        self._tracing = tracing
        self._link = link
        self.meters = meters

    async def run(self) -> None:
        """Raises OperatorError for what only a person can mend."""
        while True:
            async for attempt in forever(Unavailable, on_retry=self._on_retry, longest=2.0):
                with attempt:
                    await self._session()

    def _on_retry(self, number: int, error: BaseException | None, pause: float) -> None:
        self.meters.role = "starting"
        if number in (1, 4) or number % 15 == 0:
            log.warning("trying again", reason=str(error), seconds=round(pause, 2))

    async def _session(self) -> None:
        """One life. Returns after a failure that followed some success, so that the next pauses begin short; else raises Unavailable."""
        begun = time.monotonic()
        try:
            await self._live()
        except (*AGAIN, BaseExceptionGroup) as failure:
            self._go_on_after(failure, AGAIN, begun)

    def _go_on_after(self, failure: BaseException, mendable: tuple[type[BaseException], ...], begun: float) -> None:
        """Return where something was acknowledged since `begun`, so that the next pauses begin short; else raise Unavailable.
        What is not of the `mendable` kinds is raised as it is, an OperatorError alone.
        """
        leaves = list(_leaves(failure))
        error = next((leaf for leaf in leaves if isinstance(leaf, OperatorError)), None)
        if error is not None:
            raise error
        if any(not isinstance(leaf, mendable) or (isinstance(leaf, Deposed) and mendable is not AGAIN) for leaf in leaves):
            raise failure
        self.meters.trouble = str(leaves[0]) or type(leaves[0]).__name__
        if not isinstance(leaves[0], Refused) and (self.meters.acknowledged_at or 0) <= begun:
            raise Unavailable(self.meters.trouble) from failure
        log.warning("going on from what is stored", reason=self.meters.trouble)

    async def _live(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            session = await stack.enter_async_context(self._connect("leader"))
            await self._check_source(session)
            lead = Lead(session)
            while not await lead.try_acquire():
                self.meters.role = "standby"
                self.meters.standby_seen_at = time.monotonic()
                await asyncio.sleep(STANDBY_PAUSE)
            async with asyncio.TaskGroup() as group:
                group.create_task(lead.beat())
                group.create_task(self._end_of(session))
                await self._lead(lead, stack, group)

    async def _lead(self, lead: Lead, stack: contextlib.AsyncExitStack, group: asyncio.TaskGroup) -> None:
        reader = await stack.enter_async_context(self._connect("reader"))
        bulk = await stack.enter_async_context(self._connect("bulk"))
        for connection in (reader, bulk):
            await connection.execute(SESSION)
        bell = Doorbell(reader, allowed=await self._may_ring(reader), counts=self.meters.counts)
        # LISTEN first and read then: what is committed in between is found by the read or heard.
        await bell.listen()
        carried = Carried(self.meters)
        for channel in self._config.channels:
            await reader.add_listener(channel, carried.on_notify)
        # Not with the relay: the journal takes them while NATS is away.
        group.create_task(carried.write(lead))
        group.create_task(retain(lead))
        progress = Progress(lead)
        while True:
            async for attempt in forever(Unavailable, on_retry=self._on_retry, longest=2.0):
                with attempt:
                    await self._relay(lead, progress, bell, Reading(reader, bulk))

    async def _relay(self, lead: Lead, progress: Progress, bell: Doorbell, reading: Reading) -> None:
        """Relay until NATS fails; what is wrong with PostgreSQL ends the session instead."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(5):
                await self._link.connected.wait()
            state, resumed, identity = await self._open_stream(lead, progress)
            async with publisher(self._link.client, atomic=bool(state.config.get("allow_atomic"))) as sending:
                address = Address(self._config.prefix, self._config.source, identity.incarnation, identity.epoch or "")
                journal = Journal(reading.reader, reading.bulk, incarnation=identity.incarnation, source=encode_token(self._config.source))
                relay = Relay(
                    lead=lead,
                    progress=progress,
                    journal=journal,
                    publisher=sending,
                    address=address,
                    quarantined=await progress.quarantined(),
                    cursor=resumed.cursor,
                    meters=self.meters,
                    tracing=self._tracing,
                )
                await relay.finish(resumed.published)
                if resumed.new_epoch is not None:
                    # The batch's first messages have the old epoch: a second start must not have to make sense of that.
                    await relay.settle()
                self.meters.role, self.meters.epoch, self.meters.trouble = "leader", address.epoch, ""
                log.info("leading", stream=state.name, epoch=address.epoch, last_sequence=relay.cursor.stream_sequence)
                async with asyncio.TaskGroup() as group:
                    group.create_task(follow(relay, bell))
                    group.create_task(sing(lead, self.meters))
                    group.create_task(self._watch_stream(identity, state))
                    group.create_task(self._watch_link())
        except (*NATS_AGAIN, BaseExceptionGroup) as failure:
            self._go_on_after(failure, NATS_AGAIN, begun)

    async def _open_stream(self, lead: Lead, progress: Progress) -> tuple[StreamState, Plan, Identity]:
        """Find or make the stream, decide where to go on, and store it; the stream's epoch is then the identity's."""
        config, client = self._config, self._link.client
        identity, system, timeline = await progress.identity()
        present = Identity(identity.incarnation, system, timeline, config.source, config.prefix, config.stream, None, None)
        epoch = new_epoch()
        wanted = stream.configuration(config.stream, config.prefix, config.source, config.limits, epoch)
        state = await stream.find(client, config.stream)
        if state is None:
            state = await stream.create(client, wanted)
        elif identity.stream != config.stream or identity.epoch != state.epoch:
            await stream.check_free(client, state, wanted, known=identity.stream == config.stream)
        last = await stream.stored(client, state.name, state.last_sequence) if state.last_sequence else None
        cursor = await progress.cursor()
        decided = plan(identity, present, cursor, state, last, await stream.begun(client, state, cursor, identity.epoch) if cursor is not None else 0)
        if decided.rewind:
            decided = await _rewound(decided, progress, state)
        if decided.new_epoch is None:
            epoch = identity.epoch or epoch
        else:
            log.warning("new epoch", reason=decided.new_epoch, epoch=epoch)
        lead.check()
        state = await stream.update(client, state, stream.configuration(config.stream, config.prefix, config.source, config.limits, epoch))
        settled = replace(decided.identity, epoch=epoch, stream_created=state.created)
        if decided.new_epoch is not None or settled != identity:
            await progress.store(decided.cursor)
            await progress.identify(settled)
        return state, decided, settled

    async def _watch_stream(self, identity: Identity, known: StreamState) -> None:
        """Once a minute: is it still the same stream, and has it not lost its end?"""
        highest = known.last_sequence
        while True:
            await asyncio.sleep(CHECK_EVERY)
            state = await stream.find(self._link.client, self._config.stream)
            if state is None or state.created != known.created or state.epoch != identity.epoch or state.last_sequence < highest:
                raise Unavailable("the stream was changed by somebody else")
            highest = state.last_sequence

    async def _watch_link(self) -> None:
        """What was sent over a connection that broke may never be acknowledged; don't wait for it."""
        known = self._link.reconnects
        while self._link.client.is_connected and self._link.reconnects == known:
            await asyncio.sleep(0.05)
        raise Unavailable("the connection to NATS was lost")

    @contextlib.asynccontextmanager
    async def _connect(self, part: str) -> AsyncIterator[asyncpg.Connection]:
        async with postgres.connection(self._config.database_url, setting="TOCSIN_DATABASE_URL", application=f"tocsin listener {part}") as connection:
            yield connection

    async def _check_source(self, session: asyncpg.Connection) -> None:
        if await session.fetchval("SELECT pg_is_in_recovery()"):
            raise Unavailable("TOCSIN_DATABASE_URL leads to a standby; waiting until it is the primary")
        await require_installed(session)
        await require_own_journal(session)

    async def _may_ring(self, reader: asyncpg.Connection) -> bool:
        if self._config.doorbell == "auto":
            return bool(await reader.fetchval("SELECT current_setting('max_prepared_transactions')::int = 0"))
        return self._config.doorbell == "on"

    async def _end_of(self, session: asyncpg.Connection) -> None:
        ended = asyncio.Event()
        session.add_termination_listener(lambda _: ended.set())
        await ended.wait()
        raise Deposed("the leading session ended")


async def _rewound(decided: Plan, progress: Progress, state: StreamState) -> Plan:
    """The stream lost its end: go back to the batch in which it ends now, or as far as the journal goes."""
    cursor = await progress.cursor_at(state.last_sequence)
    if cursor is None or cursor.intended is None:
        return replace(decided, cursor=Cursor(cursor.reached if cursor else BEGINNING, None, state.last_sequence), published=0)
    return replace(decided, cursor=cursor, published=state.last_sequence - cursor.stream_sequence)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
