"""The replica: reachable, and its subscription healthy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import asyncpg

from tocsin import postgres
from tocsin.cli.examine.finding import Finding, bad, good
from tocsin.errors import OperatorError, Unavailable
from tocsin.settings import Settings
from tocsin.stack import running

PART: Final = "replica"
SETTING: Final = "TOCSIN_REPLICA_URL"

_SUBSCRIPTIONS: Final = """
SELECT s.subname AS name, s.subenabled AS enabled, w.pid IS NOT NULL AS working,
       (SELECT count(*) FROM pg_subscription_rel AS r WHERE r.srsubid = s.oid AND r.srsubstate <> 'r') AS copying,
       (SELECT count(*) FROM pg_subscription_rel AS r WHERE r.srsubid = s.oid) AS tables
FROM pg_subscription AS s
LEFT JOIN pg_stat_subscription AS w ON w.subid = s.oid AND w.relid IS NULL AND w.pid IS NOT NULL
WHERE s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    url = running.replica_url(settings)
    if url is None:
        yield good(PART, f"{SETTING} is not set: no replica to look at")
        return
    try:
        connection = await postgres.connect(url, setting=SETTING, application="tocsin doctor")
    except OperatorError as error:
        yield bad(PART, str(error), error.fix)
        return
    except Unavailable as error:
        yield bad(PART, str(error), f"start that server, or correct {SETTING}")
        return
    try:
        yield good(PART, f"{postgres.without_password(url)} answers" + ("" if settings.replica_url else " (embedded)"))
        rows = await connection.fetch(_SUBSCRIPTIONS)
        if not rows:
            yield bad(PART, "it subscribes to nothing", "tocsin replicate TABLE")
        for row in rows:
            yield _subscription(row)
    except asyncpg.PostgresError as error:
        yield bad(PART, f"a question to the replica failed: {error}", f"grant the user in {SETTING} the role pg_read_all_stats")
    finally:
        await postgres.close(connection)


def _subscription(row: asyncpg.Record) -> Finding:
    name = row["name"]
    if not row["enabled"]:
        return bad(PART, f"the subscription {name} is disabled", f'ALTER SUBSCRIPTION "{name}" ENABLE;   # on the replica; its log says why it was')
    if not row["working"]:
        return bad(PART, f"the subscription {name} has no worker: it can't reach the source, or fails to apply", "the replica's server log says why")
    if row["copying"]:
        return bad(
            PART, f"the subscription {name}: {row['copying']} of {row['tables']} tables are still being copied", "wait; `tocsin replicate` shows how far"
        )
    return good(PART, f"the subscription {name} follows {row['tables']} tables")
