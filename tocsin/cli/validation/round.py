"""The round itself: every part is looked at, then a table is made, changed, replicated, spoilt and mended, and taken away again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg

from tocsin import broker, postgres
from tocsin.cli.drift_repair import Mending
from tocsin.cli.validation import standing
from tocsin.cli.validation.auditor import Auditor
from tocsin.cli.validation.ears import Ear, Heard, nats_ear, socket_ear
from tocsin.cli.validation.report import CHECKER, GATEWAY, LISTENER, NATS, REPLICA, SOURCE, Broken, Report, Stopped
from tocsin.cli.validation.sweep import Sweep
from tocsin.cli.validation.trial import AFTER, CHANGES, PLANTED, ROLLED_BACK, ROWS, Change, Trial, abandoned
from tocsin.settings import Settings
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.sides import open_sides
from tocsin_check.replication.replicate import NAME as REPLICATION
from tocsin_check.replication.replicate import replicate
from tocsin_check.watch.checker import Checker
from tocsin_listener.install import VERSION, require_installed
from tocsin_listener.watch import watch

_PAUSE: Final = 0.05


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is validated, and where. `patience` is the seconds that a step may take; `replica` whether there is one to look at."""

    settings: Settings
    gateway_url: str
    check_url: str
    token: str | None
    schema: str
    patience: float
    replica: bool
    source_url_from_replica: str | None


@dataclass(slots=True)
class Round:
    """`run` never raises for what a server may cause; the report says it."""

    wanted: Wanted
    report: Report
    trial: Trial
    _ears: list[Ear] = field(default_factory=list)
    _link: broker.Link | None = None
    _made: bool = False

    async def run(self) -> None:
        """All of it; what was made is removed whatever happens, a cancellation included."""
        begun = time.perf_counter()
        self.report.table = str(self.trial)
        settings = self.wanted.settings
        sweep = Sweep(settings.require_database_url(), settings.replica_url if self.wanted.replica else None, self.wanted.patience)
        try:
            async with contextlib.AsyncExitStack() as stack:
                with contextlib.suppress(Stopped):
                    await self._everything(stack, sweep)
        finally:
            if self._made:
                with contextlib.suppress(Stopped), self.report.step(SOURCE, "cleaned up"):
                    await sweep.remove(self.trial)
            self.report.left += sweep.left
            self.report.seconds = time.perf_counter() - begun

    async def _everything(self, stack: contextlib.AsyncExitStack, sweep: Sweep) -> None:
        source, replica = await self._parts(stack)
        if self.report.failed:
            return
        assert source is not None
        with self.report.step(SOURCE, "nothing left of earlier runs"):
            for trial in await abandoned(source):
                await sweep.remove(trial)
            if replica is not None:
                await sweep.orphans(str(sweep.replica_url))
        await self._make(source, replica)
        for change in CHANGES:
            await self._change(source, change)
        await self._rolled_back(source)
        self._same_on_both()
        if replica is not None:
            await self._replicated(source, replica)
            await self._drift(replica)

    async def _parts(self, stack: contextlib.AsyncExitStack) -> tuple[asyncpg.Connection | None, asyncpg.Connection | None]:
        """Each part by itself, so that all that is down is named at once."""
        source = replica = None
        with contextlib.suppress(Stopped), self.report.step(SOURCE, "answers, installed") as step:
            url = self.wanted.settings.require_database_url()
            source = await stack.enter_async_context(postgres.connection(url, setting="TOCSIN_DATABASE_URL", application="tocsin validate"))
            await require_installed(source)
            step.detail = f"PostgreSQL {await source.fetchval('SHOW server_version')}, the schema tocsin of version {VERSION}"
        if self.wanted.replica:
            with contextlib.suppress(Stopped), self.report.step(REPLICA, "answers, follows") as step:
                url = self.wanted.settings.require_replica_url()
                replica = await stack.enter_async_context(postgres.connection(url, setting="TOCSIN_REPLICA_URL", application="tocsin validate"))
                self.trial.made_replication = not await standing.subscription_works(replica, self.wanted.patience)
                step.detail = "nothing is replicated yet: it is set up for this, and removed after" if self.trial.made_replication else "the subscription works"
            with contextlib.suppress(Stopped), self.report.step(CHECKER, "answers"):
                await self._auditor.report()
        subjects = self.trial.subjects(self.wanted.settings)
        with contextlib.suppress(Stopped), self.report.step(NATS, "answers, subscribed") as step:
            ear, link = await stack.enter_async_context(nats_ear(self.wanted.settings, subjects, self.wanted.patience))
            self._ears.append(ear)
            self._link = link
            state = await broker.stream_state(link.client, self.wanted.settings.stream_name)
            if state is None:
                raise Broken(f"the stream {self.wanted.settings.stream_name} does not exist", "start the listener, which makes it: tocsin listener")
            version = link.client.connected_server_version
            step.detail = f"nats-server {version.major}.{version.minor}.{version.patch}, stream {state.name}"
        with contextlib.suppress(Stopped), self.report.step(GATEWAY, "answers, subscribed by WebSocket"):
            self._ears.append(await stack.enter_async_context(socket_ear(self.wanted.gateway_url, subjects, self.wanted.token, self.wanted.patience)))
        if source is not None and not self.report.failed:
            with contextlib.suppress(Stopped), self.report.step(LISTENER, "leads"):
                await standing.until_leader(source, self.wanted.patience)
        elif source is not None:
            with contextlib.suppress(Stopped), self.report.step(LISTENER, "leads"):
                await standing.check_leader(source)
        return source, replica

    async def _make(self, source: asyncpg.Connection, replica: asyncpg.Connection | None) -> None:
        with self.report.step(SOURCE, "a table of its own, watched"):
            await self.trial.claim(source)
            self._made = True
            await self.trial.create(source)
            await watch(source, [str(self.trial)])
        if replica is not None:
            with self.report.step(REPLICA, "the table replicated"):
                address = await self._address(replica)
                await replicate(
                    source_url=self.wanted.settings.require_database_url(),
                    replica_url=self.wanted.settings.require_replica_url(),
                    tables=[str(self.trial)],
                    source_url_from_replica=address,
                    patience=self.wanted.patience,
                )

    async def _address(self, replica: asyncpg.Connection) -> str | None:
        """The source as the replica's server dials it: what stands there must not be changed by a validation."""
        if self.wanted.source_url_from_replica is not None or self.trial.made_replication:
            return self.wanted.source_url_from_replica
        try:
            return str(await replica.fetchval("SELECT subconninfo FROM pg_subscription WHERE subname = $1", REPLICATION))
        except asyncpg.InsufficientPrivilegeError as error:
            fix = "say it with --source-url-from-replica, as to tocsin replicate, or let a superuser be in TOCSIN_REPLICA_URL"
            raise Broken(f"this user may not read where the subscription {REPLICATION} finds the source", fix) from error

    async def _change(self, source: asyncpg.Connection, change: Change) -> None:
        with self.report.step(LISTENER, f"{change.what}: seen by WebSocket and NATS") as step:
            before = {ear.name: len(self._changes(ear)) for ear in self._ears}
            begun = time.perf_counter()
            await source.execute(change.sql.format(table=self.trial.sql))
            for ear in self._ears:
                wanted = before[ear.name] + len(change.events)
                if not await ear.until(lambda _heard, e=ear, n=wanted: len(self._changes(e)) >= n, self.wanted.patience):  # type: ignore[misc]
                    raise await self._silent(source, ear, wanted)
                got = self._changes(ear)[before[ear.name] :]
                _compare(ear, change, got)
                step.figures[f"{ear.name} ms"] = round((got[-1].at - begun) * 1000, 2)
            step.detail = ", ".join(f"{name.removesuffix(' ms')} after {ms:.1f} ms" for name, ms in step.figures.items())

    async def _rolled_back(self, source: asyncpg.Connection) -> None:
        transaction = source.transaction()
        await transaction.start()
        await source.execute(ROLLED_BACK.format(table=self.trial.sql))
        await transaction.rollback()
        await self._change(source, AFTER)

    def _same_on_both(self) -> None:
        with self.report.step(GATEWAY, "WebSocket and NATS have the same events, in the same order") as step:
            heard = {ear.name: [event.id for event in self._changes(ear)] for ear in self._ears}
            lists = list(heard.values())
            if lists[0] != lists[1]:
                raise Broken(f"the ids differ: {heard}", "is TOCSIN_NATS_URL the same for the gateway and for this command?")
            step.detail = f"{len(lists[0])} events, ids equal"

    async def _silent(self, source: asyncpg.Connection, ear: Ear, wanted: int) -> Broken:
        """Which part keeps the events back."""
        what = f"{ear.name} has {len(self._changes(ear))} of {wanted} events after {self.wanted.patience:g} s"
        if not await standing.leads(source):
            return Broken(f"{what}, and no listener leads: changes wait in the journal, and none is lost", "tocsin listener", part=LISTENER)
        other = next(e for e in self._ears if e is not ear)
        if ear.name == NATS:
            link = self._link
            why = "" if link is None or link.connected.is_set() else ", and NATS is gone"
            part = NATS if why or await other.until(lambda _heard: len(self._changes(other)) >= wanted, 1) else LISTENER
            return Broken(f"{what}{why}", f"tocsin why {self.trial.schema}.TABLE, tocsin doctor and the listener's log say more", part=part)
        return Broken(f"{what}, NATS has all of them{f'; {ear.lost}' if ear.lost else ''}", "tocsin gateway   # its log says more", part=GATEWAY)

    def _changes(self, ear: Ear) -> list[Heard]:
        return [heard for heard in ear.heard if heard.event["data"].get("op")]

    async def _replicated(self, source: asyncpg.Connection, replica: asyncpg.Connection) -> None:
        with self.report.step(REPLICA, "the replica has the same rows") as step:
            ours = await self.trial.rows(source)
            try:
                async with asyncio.timeout(self.wanted.patience):
                    while await self.trial.rows(replica) != ours:
                        await asyncio.sleep(_PAUSE / 10)
            except TimeoutError:
                await standing.subscription_works(replica, self.wanted.patience)
                fix = "look at the replica's server log; tocsin drift says how far it is behind"
                raise Broken(f"the replica does not have the source's rows after {self.wanted.patience:g} s", fix) from None
            step.detail = f"{len(ours)} rows"

    @property
    def _auditor(self) -> Auditor:
        return Auditor(self.wanted.check_url, self.wanted.token)

    async def _drift(self, replica: asyncpg.Connection) -> None:
        with self.report.step(CHECKER, "finds the replica in sync") as step:
            step.detail = _counts(await self._proven("in_sync"))
        with self.report.step(REPLICA, "a drift planted: a row changed, one removed, one added"):
            await self.trial.plant(replica)
        with self.report.step(CHECKER, "finds the drift") as step:
            found = await self._proven("drift")
            keys = {row["key"]["id"]: row["state"] for row in found["sample"]}
            if keys != PLANTED:
                raise Broken(f"it reports {keys} in place of {PLANTED}", "report this as a bug, with the checker's log")
            step.detail = _counts(found)
        await self._told("drift")
        with self.report.step(REPLICA, "repaired, as tocsin drift --repair --apply does it") as step:
            step.detail = f"{await self._repair()} statements"
        with self.report.step(CHECKER, "finds the replica in sync again") as step:
            step.detail = _counts(await self._proven("in_sync"))
        await self._told("in_sync")

    async def _repair(self) -> int:
        """How many rows were repaired. Raises Broken where one is left."""
        urls = self.wanted.settings.require_database_url(), self.wanted.settings.require_replica_url()
        checker = Checker(*urls, publishing=False)
        async with asyncio.timeout(self.wanted.patience), open_sides(*urls) as sides:
            table = next(t for t in await checker.take_stock(sides) if str(t.name) == str(self.trial))
            if not isinstance(table, Comparable):
                raise Broken(f"it can't be audited: {table.reason}", f"tocsin drift {self.trial.schema}.TABLE says more")
            await checker.auditor.audit_table(sides, table)
            done = await Mending(urls[1], apply=True, output=None, to_stdout=False).mend(sides, table, checker)
        if left := [repair.left for repair in done if repair.left]:
            raise Broken(f"{len(left)} of {len(done)} rows are not repaired: {left[0]}", "the user in TOCSIN_REPLICA_URL has to be allowed to write the table")
        return len(done)

    async def _proven(self, status: str) -> dict[str, Any]:
        last: dict[str, Any] = {}
        try:
            async with asyncio.timeout(self.wanted.patience):
                while last.get("status") != status:
                    last = await self._auditor.audit(str(self.trial))
                    await asyncio.sleep(_PAUSE if last.get("status") != status else 0)
        except TimeoutError:
            said = f"{last['status']}: {last.get('reason') or _counts(last)}" if last else "it does not know the table"
            fix = f"look at {self.wanted.check_url} and at the checker's log; do its TOCSIN_DATABASE_URL and TOCSIN_REPLICA_URL name these databases?"
            raise Broken(f"not {status} after {self.wanted.patience:g} s, but {said}", fix) from None
        if status == "in_sync" and last["rows"] != ROWS:
            raise Broken(f"it counts {last['rows']} rows, not {ROWS}", "report this as a bug, with the checker's log")
        return last

    async def _told(self, status: str) -> None:
        """The checker's finding is an event, too."""
        with self.report.step(CHECKER, f"its finding {status} seen by WebSocket and NATS") as step:
            ids = set()
            for ear in self._ears:
                if not await ear.until(lambda heard: any(h.event["data"].get("status") == status for h in heard), self.wanted.patience):
                    fix = "is the listener running? Else: GRANT EXECUTE ON FUNCTION tocsin.report_drift TO the checker's user; its log says more"
                    raise Broken(f"{ear.name} has no event of it after {self.wanted.patience:g} s", fix)
                ids.add(next(h.id for h in reversed(ear.heard) if h.event["data"].get("status") == status))
            if len(ids) != 1:
                raise Broken(f"the ids differ: {sorted(ids)}", "is TOCSIN_NATS_URL the same for the gateway and for this command?")
            step.detail = f"id {ids.pop()}"


def _compare(ear: Ear, change: Change, got: list[Heard]) -> None:
    seen = tuple((h.event["data"]["op"], h.event["data"]["key"]["id"], (h.event["data"].get("new") or {}).get("note")) for h in got)
    if seen != change.events:
        raise Broken(f"{ear.name} saw {seen} in place of {change.events}", "report this as a bug, with the listener's log")


def _counts(report: dict[str, Any]) -> str:
    return f"{report.get('rows')} rows, {report.get('missing')} missing, {report.get('extra')} extra, {report.get('different')} different"
