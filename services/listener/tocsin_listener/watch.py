"""Which tables ring, and how: `watch`, `unwatch`, `watched`. Each call is one transaction."""

from __future__ import annotations

import difflib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import asyncpg

from tocsin.errors import OperatorError
from tocsin_listener.giving_way import HOLDERS, LOCK_TIMEOUT, giving_way
from tocsin_listener.install import require_installed

OPS: Final = ("insert", "update", "delete", "truncate")
PATIENCE: Final = 5.0
"""Seconds for locks that others hold. Meanwhile no writer waits longer than giving_way says."""
MOST_ROUTES: Final = 8

Old = Literal["changed", "full", "none"]


@dataclass(frozen=True, slots=True)
class Watched:
    """One watched table; `relation` is its name quoted as SQL needs it, `key` its key's columns, empty where it has none."""

    relation: str
    ops: list[str]
    columns: list[str] | None
    route: list[str]
    old: str
    when: str | None
    exact_numbers: bool
    key: list[str]
    subject: str
    heir_of: str | None = None
    """The table that it inherits from: what is written through that is not told here."""


async def watch(
    connection: asyncpg.Connection,
    tables: Sequence[str],
    *,
    ops: Sequence[str] = OPS,
    columns: Sequence[str] | None = None,
    route: Sequence[str] = (),
    old: Old = "changed",
    when: str | None = None,
    exact_numbers: bool = False,
    patience: float = PATIENCE,
) -> list[Watched]:
    """Watch tables, or change how they are watched; what is in force then.

    A table is named as in SQL, or plainly as `name` or `schema.name` with any characters. Raises OperatorError where a table,
    column or operation does not exist, a condition is not one, or a privilege is missing.
    """
    await require_installed(connection)
    _check_ops(ops)
    if len(route) > MOST_ROUTES:
        raise OperatorError(f"--route: {len(route)} columns are too many for a subject; at most {MOST_ROUTES} are allowed", "name fewer")
    if not tables:
        raise OperatorError("no table is named", "tocsin watch TABLE…")
    how: list[object] = [list(ops), list(columns) if columns else None, list(route), old, when, exact_numbers]
    async with connection.transaction():
        await _be_patient(connection, patience)
        watches = {}
        for name in tables:
            relation = await find_table(connection, name)
            await _check_relatives(connection, relation)
            await _check_columns(connection, relation, [*(columns or ()), *route])
            watches[relation] = await _describe(connection, relation, how, patience)
        await _one_by_one(connection, "watch", {relation: f"SELECT tocsin.set_triggers({number})" for relation, number in watches.items()}, patience)
    found = await _watched(connection, list(watches))
    return [found[relation] for relation in watches]


async def unwatch(connection: asyncpg.Connection, tables: Sequence[str], *, patience: float = PATIENCE) -> list[str]:
    """Stop watching tables; their names as SQL. Raises OperatorError where one is not watched."""
    await require_installed(connection)
    async with connection.transaction():
        await _be_patient(connection, patience)
        relations = list(dict.fromkeys([await find_table(connection, name) for name in tables]))
        names = [await _shown(connection, relation) for relation in relations]
        known = await _watched(connection, relations)
        for relation, shown in zip(relations, names, strict=True):
            if relation not in known:
                raise OperatorError(f"{shown} is not watched", "tocsin watched lists what is")
        await _one_by_one(connection, "unwatch", {relation: f"SELECT tocsin.unwatch({relation}::oid::regclass)" for relation in relations}, patience)
    return names


async def _be_patient(connection: asyncpg.Connection, patience: float) -> None:
    await connection.execute(f"SET LOCAL lock_timeout = {int(patience * 1000)}; SET LOCAL client_min_messages = warning")


async def _one_by_one(connection: asyncpg.Connection, verb: str, statements: dict[int, str], patience: float) -> None:
    """Each relation's statement, all or none; writers of those that had theirs wait for the end of the transaction."""

    async def attempt() -> None:
        begun = time.monotonic()
        async with connection.transaction():
            for statement in statements.values():
                # Who waits for the first table looks for a deadlock after 1 s, and would fail if we waited for it in that moment: so in the end
                # only locks that are free are taken.
                timeout = LOCK_TIMEOUT if time.monotonic() - begun < 0.5 else 1
                await connection.execute(f"SET LOCAL lock_timeout = {timeout}; {statement}")

    try:
        await giving_way(attempt, patience)
    except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
        raise await _busy(connection, list(statements), verb, patience) from error


async def watched(connection: asyncpg.Connection) -> list[Watched]:
    """Every watched table, by name."""
    await require_installed(connection)
    return list((await _watched(connection, None)).values())


async def _watched(connection: asyncpg.Connection, relations: list[int] | None) -> dict[int, Watched]:
    """By oid, in the order of the names."""
    rows = await connection.fetch(
        """SELECT w.relation::oid AS oid, w.relation::text AS relation, w.ops, w.columns, w.route, w.old, w.condition, w.exact_numbers,
                  ARRAY(SELECT s.name::text FROM tocsin.shape(w.relation) AS s WHERE s.key_place IS NOT NULL ORDER BY s.key_place) AS key,
                  tocsin.token(n.nspname) || '.' || tocsin.token(c.relname) AS subject, tocsin.root_of(w.relation)::text AS heir_of
           FROM tocsin.watched AS w JOIN pg_class AS c ON c.oid = w.relation JOIN pg_namespace AS n ON n.oid = c.relnamespace
           WHERE $1::oid[] IS NULL OR w.relation = ANY ($1)
           ORDER BY n.nspname, c.relname""",
        relations,
    )
    return {
        r["oid"]: Watched(
            r["relation"], r["ops"], r["columns"], r["route"], r["old"], r["condition"], r["exact_numbers"], r["key"], f"change.{r['subject']}", r["heir_of"]
        )
        for r in rows
    }


async def find_table(connection: asyncpg.Connection, name: str) -> int:
    """The table's oid: an exact `name` on the search path or `schema.name`, else read as SQL would. Raises OperatorError."""
    found = await connection.fetchrow(
        """SELECT c.oid, c.relkind::text AS kind, n.nspname, c.relpersistence::text AS persistence
           FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
           WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
             AND ((c.relname = $1::text AND pg_table_is_visible(c.oid)) OR n.nspname || '.' || c.relname = $1::text OR c.oid = (SELECT tocsin.named($1::text)))
           ORDER BY (c.relname = $1::text AND pg_table_is_visible(c.oid)) DESC, n.nspname || '.' || c.relname = $1::text DESC LIMIT 1""",
        name,
    )
    if found is None:
        raise await _no_such_table(connection, name)
    if found["kind"] not in ("r", "p"):
        kind = {"v": "view", "m": "materialized view", "f": "foreign table"}[found["kind"]]
        raise OperatorError(f"{name} is a {kind}; only tables can be watched", "watch the tables that it reads from")
    if found["nspname"] in ("tocsin", "tocsin_check", "pg_catalog", "information_schema") or found["persistence"] == "t":
        raise OperatorError(f"{name} can't be watched: it is a table of PostgreSQL, of Tocsin or of one session", "watch tables of your application")
    return int(found["oid"])


async def _no_such_table(connection: asyncpg.Connection, name: str) -> OperatorError:
    rows = await connection.fetch(
        """SELECT c.oid::regclass::text AS shown, c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
           WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('tocsin', 'tocsin_check', 'pg_catalog', 'information_schema')
             AND n.nspname !~ '^pg_(toast|temp)' ORDER BY 1 LIMIT 5000"""
    )
    database = await connection.fetchval("SELECT current_database()")
    by_name = {row["relname"]: row["shown"] for row in rows} | {row["shown"]: row["shown"] for row in rows}
    close = list(dict.fromkeys(by_name[match] for match in difflib.get_close_matches(name, list(by_name), n=5, cutoff=0.5)))
    if close:
        fix = f"did you mean {' or '.join(close[:3])}?"
    elif rows:
        fix = f"the database has: {', '.join(row['shown'] for row in rows[:12])}{' …' if len(rows) > 12 else ''}"
    else:
        fix = "the database has no table yet; is TOCSIN_DATABASE_URL the right one?"
    return OperatorError(f"there is no table {name} in the database {database}", fix)


def _check_ops(ops: Sequence[str]) -> None:
    unknown = [op for op in ops if op not in OPS]
    if unknown or not ops:
        raise OperatorError(f"--ops: {', '.join(map(repr, unknown)) or 'nothing'} is not an operation", f"allowed are {', '.join(OPS)}, separated by commas")


async def _check_relatives(connection: asyncpg.Connection, relation: int) -> None:
    found = await connection.fetchrow(
        """SELECT c.oid::regclass::text AS shown, c.relispartition AS is_partition, tocsin.root_of(c.oid)::text AS root,
                  ARRAY(SELECT f::text FROM tocsin.far_below(c.oid) AS f) AS far,
                  (SELECT string_agg(format('ALTER TABLE %s %s %s;', inhparent::regclass, CASE WHEN p.relispartition THEN 'DETACH PARTITION'
                                            ELSE 'NO INHERIT' END, p.oid::regclass), ' ')
                   FROM tocsin.far_below(c.oid) AS f JOIN pg_class AS p ON p.oid = f JOIN pg_inherits ON inhrelid = f) AS apart
           FROM pg_class AS c WHERE c.oid = $1""",
        relation,
    )
    assert found is not None, "the table was found before"
    shown, root = found["shown"], found["root"]
    if found["is_partition"]:
        raise OperatorError(f"{shown} is a partition of {root}: what is written through {root} would not be told", f"tocsin watch {root}")
    if found["far"]:
        raise OperatorError(
            f"{shown} has foreign tables below it ({', '.join(found['far'])}), to which PostgreSQL could not write through it any more", found["apart"]
        )


async def _check_columns(connection: asyncpg.Connection, relation: int, names: Sequence[str]) -> None:
    if not names:
        return
    rows = await connection.fetch("SELECT name::text AS name FROM tocsin.shape($1::oid::regclass)", relation)
    known = [row["name"] for row in rows]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            fix = f"did you mean {' or '.join(close)}?" if close else f"its columns are {', '.join(known)}"
            raise OperatorError(f"{await _shown(connection, relation)} has no column {name}", fix)


async def _describe(connection: asyncpg.Connection, relation: int, how: list[object], patience: float) -> int:
    """The watch's number; its functions are written, its triggers are not."""
    shown = await _shown(connection, relation)
    await _check_privileges(connection, relation, shown)
    try:
        async with connection.transaction():
            return int(await connection.fetchval("SELECT tocsin.describe_watch($1::oid::regclass, $2, $3, $4, $5, $6, $7)", relation, *how))
    except asyncpg.LockNotAvailableError as error:
        raise await _busy(connection, [relation], "watch", patience) from error
    except (asyncpg.SyntaxOrAccessError, asyncpg.DataError) as error:
        if how[4] is None:
            raise
        raise OperatorError(
            f"--when {how[4]!r} is not a condition on {shown}: {error}", "write it as in WHERE, such as --when \"status <> 'draft'\""
        ) from error


async def _check_privileges(connection: asyncpg.Connection, relation: int, shown: str) -> None:
    user = await connection.fetchval("SELECT quote_ident(current_user)")
    if not await connection.fetchval("SELECT has_schema_privilege('tocsin', 'CREATE')"):
        owner = await connection.fetchval("SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = 'tocsin'")
        raise OperatorError(f"the user {user} may not change what is watched", f"run this as {owner}, who installed Tocsin")
    missing = await connection.fetchval(
        "SELECT ARRAY(SELECT f::text FROM tocsin.family($1::oid::regclass) AS f WHERE NOT has_table_privilege(f, 'TRIGGER'))", relation
    )
    if missing:
        raise OperatorError(f"the user {user} may not create triggers on {shown}", f"as its owner: GRANT TRIGGER ON {', '.join(missing)} TO {user}")


async def _busy(connection: asyncpg.Connection, relations: list[int], verb: str, patience: float) -> OperatorError:
    # A new trigger keeps writers away alone, to drop one everybody.
    holders = await connection.fetchval(HOLDERS, relations, ["AccessShareLock", "RowShareLock"] if verb == "watch" else [])
    return OperatorError(
        f"locked by another transaction; gave up after {patience:.0f} s, so that no writer waits behind this; nothing is changed."
        f" In the way: {holders or 'it has just ended'}",
        f"tocsin {verb} TABLE…   # again when that transaction has ended, or end it: SELECT pg_terminate_backend(PID);",
    )


async def _shown(connection: asyncpg.Connection, relation: int) -> str:
    return str(await connection.fetchval("SELECT $1::oid::regclass::text", relation))
