"""What NATS refused for good, and sending it again: as a new event, since its place in its batch is skipped for ever."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal

import asyncpg

from tocsin.subject import encode_token
from tocsin_listener.install import require_installed

Fate = Literal["waiting", "sent", "superseded", "copy", "dismissed"]

_LIST: Final = """
SELECT q.seq, q.copy, q.subject, q.reason, q.at,
       EXISTS (SELECT FROM tocsin.events AS j
               WHERE j.seq > q.seq AND j.key = e.event ->> 'subject' AND j.subject LIKE 'change.%' AND q.subject LIKE '%.change.%'
                 AND regexp_replace(j.type, '[.][^.]*$', '') = regexp_replace(e.event ->> 'type', '[.][^.]*$', '')) AS superseded
FROM tocsin.quarantine AS q, LATERAL (SELECT convert_from(q.message, 'UTF8')::json AS event) AS e
WHERE q.retried IS NULL AND ($1::bigint[] IS NULL OR q.seq = ANY ($1)) ORDER BY q.seq, q.copy
"""
_SEND: Final = """
WITH sent AS (
    INSERT INTO tocsin.journal (stmt, subject, old_subject, type, key, annotation, data)
    SELECT nextval('tocsin.seq'), substr(q.subject, length($2) + 1),
           (SELECT substr(c.subject, length($2) + 1) FROM tocsin.quarantine AS c WHERE c.seq = q.seq AND c.copy),
           event ->> 'type', event ->> 'subject', (event -> 'annotation')::text, (event -> 'data')::text
    FROM tocsin.quarantine AS q, LATERAL (SELECT convert_from(q.message, 'UTF8')::json AS event) AS e
    WHERE q.seq = $1 AND NOT q.copy AND q.retried IS NULL
    RETURNING seq
)
UPDATE tocsin.quarantine AS q SET retried = sent.seq FROM sent WHERE q.seq = $1 RETURNING q.retried
"""
# What was sent again has the new event's sequence in `retried`, what never will be has its own.
_DISMISS: Final = "UPDATE tocsin.quarantine SET retried = seq WHERE retried IS NULL AND seq = ANY ($1)"
_RING: Final = "SELECT CASE WHEN NOT pg_try_advisory_xact_lock_shared(8390040714906399854) THEN pg_notify('tocsin', '') END"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One message set aside, and what became of it: `superseded` where a later change of the same row would be undone by it."""

    seq: int
    subject: str
    reason: str
    at: datetime
    fate: Fate


async def refusals(connection: asyncpg.Connection, seqs: list[int] | None = None) -> list[Refusal]:
    """Those not sent again yet, or those of `seqs` among them, in order."""
    await require_installed(connection)
    rows = await connection.fetch(_LIST, seqs)
    originals = {row["seq"] for row in rows if not row["copy"]}
    return [
        Refusal(row["seq"], row["subject"], row["reason"], row["at"], "superseded" if row["superseded"] else "waiting" if not row["copy"] else "copy")
        for row in rows
        if not row["copy"] or row["seq"] not in originals
    ]


async def retry(connection: asyncpg.Connection, seqs: list[int] | None = None, *, force: bool = False) -> list[Refusal]:
    """Write each into the journal again, as an event of its own with a new id; what became of each, in order.

    One that is superseded is left alone, but with `force`. A lone copy under an old route can't be sent by itself.
    """
    found_all = await refusals(connection, seqs)
    root = await connection.fetchrow("SELECT prefix, source FROM tocsin.identity")
    done = []
    for found in found_all:
        fate = found.fate
        if root is not None and (fate == "waiting" or (fate == "superseded" and force)):
            async with connection.transaction():
                sent = await connection.fetchval(_SEND, found.seq, f"{root['prefix']}.{encode_token(root['source'])}.")
                await connection.execute(_RING)
            fate = "sent" if sent is not None else fate
        done.append(Refusal(found.seq, found.subject, found.reason, found.at, fate))
    return done


async def dismiss(connection: asyncpg.Connection, seqs: list[int] | None = None) -> list[Refusal]:
    """Send none of them, and count them no more; they stay in tocsin.quarantine. In order."""
    done = await refusals(connection, seqs)
    await connection.execute(_DISMISS, [found.seq for found in done])
    return [replace(found, fate="dismissed") for found in done]
