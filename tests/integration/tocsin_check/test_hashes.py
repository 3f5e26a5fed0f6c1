"""Two values hash alike exactly where PostgreSQL calls them equal: its own hashes alone do not keep that (docs/decisions/0140)."""

from __future__ import annotations

import asyncpg
import pytest

from tocsin_check.rows.hashing import hashed, row_hash
from tocsin_check.sessions import PINNED

EDGES = (0, 1, 5, 2**31, 2**32, 2**40 + 3, 2**62, 2**63 - 2)
WHOLE = sorted({v for edge in EDGES for step in (-1, 0, 1, 2**32, 2**32 + 1, -(2**32)) for v in (edge + step, -edge + step) if -(2**63) <= v < 2**63})
TIMES = ("00:00:00", "00:00:00.000001", "24:00:00", "01:11:34.967296", "01:11:34.967297")
MOMENTS = (
    "infinity",
    "-infinity",
    *(f"2000-01-01 {time}" for time in TIMES),
    "1999-12-31 23:59:59.999999",
    "4714-11-24 00:00:00 BC",
    "294276-12-31 23:59:59.999999",
)
FLOATS = ("0", "-0", "1", "-1", "NaN", "Infinity", "-Infinity", "0.1", "0.10000001", "0.5")
DIGEST = "cfcd208495d565ef66e7dff9f98764da"
VALUES: dict[str, tuple[str, ...]] = {
    "smallint": ("-32768", "-1", "0", "1", "255", "256", "32767"),
    "integer": ("-2147483648", "-65536", "-1", "0", "1", "65536", "2147483647"),
    "bigint": tuple(map(str, WHOLE)),
    "oid": ("0", "1", "2147483648", "4294967295"),
    "numeric": (
        *(
            "0",
            "0.00",
            "0.5",
            "-0.5",
            "1",
            "1.0",
            "1.00",
            "-1",
            "10",
            "100",
            "10000",
            "-10000",
            "100000000",
            "0.0001",
            "0.00010",
            "NaN",
            "Infinity",
            "-Infinity",
        ),
        *("12345678901234567890.5", "-12345678901234567890.5", "1e100", "1e-100", "1e1000", "-1e1000", "1230000", "0.0123"),
    ),
    "real": (*FLOATS, "1e-45", "3e38"),
    "double precision": (*FLOATS, "5e-324", "1e308", "0.3", "0.30000000000000004"),
    "boolean": ("true", "false"),
    "text": ("", "a", "A", "a ", "aa", "NULL", DIGEST, "é", "e\u0301", "\U0001f514"),
    "character varying": ("", "a", "a "),
    "character": ("", "a", "b"),
    "name": ("", "a", "b"),
    '"char"': ("", "a", "b"),
    "bytea": (r"\x", r"\x00", r"\x0000", r"\x01", rf"\x{DIGEST}"),
    "uuid": (DIGEST, "0" * 32, "0" * 31 + "1", "01" + "0" * 30),
    "date": ("infinity", "-infinity", "2000-01-01", "1999-12-31", "4713-01-01 BC"),
    "timestamp with time zone": MOMENTS,
    "timestamp without time zone": MOMENTS,
    "time without time zone": TIMES,
    "time with time zone": ("00:00+00", "01:00+01", "00:00+01", "24:00+00", "12:00-03"),
    "interval": (
        *("0", "1 day", "24:00", "-1 day", "1 mon", "30 days", "-30 days", "1 us", "-1 us", "4294967295 us", "1 mon -1 day", "29 days", "1 mon -30 days"),
        *("29 days 23:59:59.999999", "1 year", "12 mons", "360 days", "178000000 years", "-178000000 years", "-1 mon 30 days 1 us"),
    ),
    "inet": ("10.0.0.1", "10.0.0.1/8", "10.0.0.0/8", "::", "::1", "0.0.0.0"),
    "cidr": ("10.0.0.0/8", "10.0.0.0/9", "::/0", "0.0.0.0/0"),
    "macaddr": ("00:00:00:00:00:00", "00:00:00:00:00:01"),
    "pg_lsn": ("0/0", "0/1", "1/0", "1/1", "FFFFFFFF/FFFFFFFF"),
}


@pytest.mark.parametrize("by_bytes", [True, False])
async def test_hashes_are_equal_exactly_where_values_are(source: asyncpg.Connection, by_bytes: bool) -> None:
    """Every pair of each type's values, and NULL against each."""
    if by_bytes and source.get_server_version().major < 18:
        return
    await source.execute(PINNED)
    for kind, values in VALUES.items():
        column = hashed("c", 'x COLLATE "C"' if kind in ("text", "character varying", "character", "name") else "x", kind, kind, by_bytes=by_bytes)
        assert column is not None, kind
        found = await source.fetch(
            f"""WITH v(x) AS (SELECT text::{kind} FROM unnest($1::text[]) AS text),
                     w AS (SELECT x, row_number() OVER () AS i, {row_hash([column], 1234567, native=True)} AS h FROM v)
                SELECT a.x::text AS one, b.x::text AS other, a.h = b.h AS alike, a.x IS NOT DISTINCT FROM b.x AS equal FROM w a JOIN w b ON a.i < b.i""",
            [*values, None],
        )
        assert [tuple(row) for row in found if row["alike"] != row["equal"]] == [], kind
        assert len(found) == len(values) * (len(values) + 1) // 2
