"""The way of one event from the writer to the stream's door, stage by stage, for `tocsin why`."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

import asyncpg

from tocsin.cli.examine import capture
from tocsin.cli.examine.finding import Finding, bad, good
from tocsin.sql import load_queries
from tocsin.subject import OPS, Pattern

SQL: Final = load_queries("tocsin.cli.examine", "why.sql")
KINDS: Final = ("change", "event", "schema", "drift", "notify", "live")


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked: `tail` is the subject's tokens behind the source, such as `change.public.orders.*`; `table` its table as SQL, if it is of one."""

    what: str
    tail: tuple[str, ...]
    table: str | None
    key: str | None

    @property
    def expression(self) -> str:
        """The tail as a regular expression."""
        return "^" + r"\.".join({"*": "[^.]+", ">": ".+"}.get(token) or re.escape(token) for token in self.tail) + "$"


@dataclass(slots=True)
class Reached:
    """The journal's newest such event, once `journal` has found it: `subject` behind the source; `begun` once its batch was, `passed` for sure."""

    seq: int = 0
    subject: str = ""
    begun: bool = False
    passed: bool = False


async def watched(connection: asyncpg.Connection, asked: Asked) -> AsyncIterator[Finding]:
    """Whether the table is watched so that such an event is captured; the last finding is not ok where it is not."""
    assert asked.table is not None
    what = asked.what
    watch = await connection.fetchrow(SQL["watch"], asked.table)
    if watch is None:
        there = await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", asked.table)
        if there:
            yield bad(what, f"{asked.table} is not watched", f"tocsin watch {asked.table}")
        else:
            yield bad(what, f"there is no table {asked.table} in this database", "name its schema, as in sales.orders; the database is TOCSIN_DATABASE_URL's")
        return
    condition = f", of rows for which {watch['condition']}" if watch["condition"] else ""
    yield good(what, f"watched: {', '.join(watch['ops'])}{condition}")
    triggers = await capture.triggers(connection, watch["oid"], watch["ops"], watch["id"], str(watch["shown"]))
    if triggers is not None:
        yield Finding(what, ok=False, text=triggers.text, fix=triggers.fix)
    for finding in _shape(what, asked.tail, watch["ops"], watch["route"], watch["shown"]):
        yield finding


def _shape(what: str, tail: Sequence[str], ops: Sequence[str], route: Sequence[str], shown: str) -> list[Finding]:
    """What of the operation and the route a pattern asks for that the table's subjects never have."""
    found = []
    op = tail[3] if len(tail) > 3 else ">"
    if op in OPS and op not in ("read", *ops):
        found.append(bad(what, f"{op} is not watched, only {', '.join(ops)}", f"tocsin watch {shown} --ops {','.join((*ops, op))}"))
    elif op not in (*OPS, "*", ">"):
        found.append(bad(what, f"{op} is no operation", f"the operations are {', '.join(OPS)}, and * is any"))
    given = tail[4:]
    # A truncate has no route, and its subject ends with the operation.
    if op not in (">", "truncate") and ">" not in given and len(given) != len(route):
        names = f"{len(route)} more: {', '.join(route)}" if route else "none more"
        fix = f"ask for {'.'.join((*tail[:4], *given[: len(route)], *['*'] * (len(route) - len(given))))} behind the source, or end it with >"
        found.append(bad(what, f"the subject has {len(given)} tokens behind the operation, the table's subjects {names}", fix))
    return found


async def writers(connection: asyncpg.Connection, asked: Asked) -> AsyncIterator[Finding]:
    """Transactions that are not yet committed."""
    for writer in await connection.fetch(SQL["writers"], asked.table):
        age = f"for {writer['age']:.0f} s" if writer["age"] is not None else "and is prepared"
        end = (
            f"commit it, or: SELECT pg_terminate_backend({writer['pid']});" if writer["pid"] else "COMMIT PREPARED, or ROLLBACK PREPARED; see pg_prepared_xacts"
        )
        yield bad(asked.what, f"a transaction that wrote it is open {age} (pid {writer['pid']}): its events come with its commit", end)


async def journal(connection: asyncpg.Connection, asked: Asked, reached: Reached) -> AsyncIterator[Finding]:
    """The newest such event, and whether it was given to the stream; fills `reached`."""
    from tocsin_listener.leader import LOCK

    what = asked.what
    last = await connection.fetchrow(SQL["last"], asked.expression, asked.key)
    if last is None:
        fix = "commit a change that the watch lets through; `tocsin doctor` says whether its triggers fire"
        if asked.table is None:
            fix = (
                "SELECT tocsin.emit('order.paid', '{}');   -- what the application says in its transaction"
                if asked.tail[0] == "event"
                else "wait for the next one"
            )
        yield bad(what, "the journal has no event of it, at least none that it still keeps", fix)
        return
    reached.seq, reached.subject, reached.begun, reached.passed = last["seq"], last["subject"], last["begun"], last["passed"]
    told = f"the last event in the journal is {last['seq']} ({last['type']}, {last['age']:.0f} s ago, txid {last['xid']})"
    if last["refused"] is not None:
        reached.begun = False
        yield bad(what, f"{told}; NATS refused it: {last['refused']}", f"mend that, then: tocsin retry {last['seq']}")
    elif last["begun"]:
        yield good(what, f"{told}; it was given to the stream")
    elif await connection.fetchval(SQL["leader"], LOCK) is None:
        yield bad(what, f"{told}; no listener leads, so nobody sends it", "tocsin listener")
    else:
        yield bad(what, f"{told}; the listener has not sent it yet", "see why in its log, and whether NATS takes messages: tocsin doctor")


def overlapping(pattern: Sequence[str], roots: Sequence[asyncpg.Record]) -> list[str]:
    """The watched tables of which a pattern with wildcards may name events."""
    asked = Pattern(".".join(pattern))
    return [row["name"] for row in roots if asked.overlaps(Pattern(f"{row['root']}.>"))]
