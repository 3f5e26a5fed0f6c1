"""Columns drawn by chance: of every kind of type, under names that are easy to take for something else."""

from __future__ import annotations

from typing import Final

TYPES: Final = """CREATE TYPE mood AS ENUM ('sad', 'ok', 'glad'); CREATE DOMAIN small AS int CHECK (VALUE > -9); CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN smalls AS int[];
CREATE FUNCTION random_of(seed int, id int) RETURNS float8 LANGUAGE sql IMMUTABLE AS
    $$ SELECT ('x' || left(md5(seed || ' ' || id), 7))::bit(28)::int / 268435456.0 $$"""
"""What they need."""
VALUES: Final = {
    "int": "({r} * 100)::int",
    "bigint": "({r} * 1e15)::bigint",
    "smallint": "({r} * 100)::smallint",
    "text": "repeat(chr(97 + ({r} * 25)::int), ({r} * 9)::int)",
    'text COLLATE "C"': "chr(97 + ({r} * 25)::int)",
    "varchar(9)": "chr(228) || chr(97 + ({r} * 25)::int)",
    "char(4)": "chr(97 + ({r} * 25)::int)",
    "bytea": "decode(md5({r}::text), 'hex')",
    "numeric": "({r} * 1000)::numeric",
    "numeric(12,3)": "({r} * 1000)::numeric(12,3)",
    "float8": "{r}::float8 / 3",
    "float4": "{r}::float4 / 3",
    "boolean": "{r} < 0.5",
    "uuid": "md5({r}::text)::uuid",
    "date": "'2026-01-01'::date + ({r} * 400)::int",
    "timestamptz": "'2026-01-01'::timestamptz + {r} * interval '1 year'",
    "timestamp": "'2026-01-01'::timestamp + {r} * interval '1 year'",
    "interval": "{r} * interval '1 day'",
    "json": "json_build_object('k', ({r} * 9)::int)",
    "jsonb": "jsonb_build_object('k', ({r} * 9)::int)",
    "int[]": "ARRAY[({r} * 9)::int, NULL]",
    "int4range": "int4range(0, ({r} * 9)::int)",
    "inet": "'10.0.0.1'::inet + ({r} * 99)::int",
    "point": "point({r}, 1)",
    "tsvector": "to_tsvector('simple', chr(97 + ({r} * 25)::int))",
    "mood": "('{{sad,ok,glad}}'::mood[])[1 + ({r} * 2)::int]",
    "small": "({r} * 9)::int::small",
    "smalls": "ARRAY[({r} * 9)::int]::smalls",
    "pair": "ROW(({r} * 9)::int, 'x')::pair",
}
"""A value of each type, of a number {r} from 0 to 1."""
NAMES: Final = [
    "a",
    "b",
    "c",
    "n",
    "o",
    "i",
    "r",
    "row",
    "whole",
    "whole_",
    "new",
    "old",
    "key",
    "seq",
    "base",
    "x y",
    'q"q',
    "É",
    "value",
    "tocsin new",
    "journal",
    "op",
]


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def value(kind: str, seed: int, row: str = "id") -> str:
    """SQL of a value of that type, which differs by the seed and by the integer that `row` is."""
    source = VALUES.get(kind, "'1'").format(r=f"random_of({seed}, {row})")
    return f"({source})::{kind.split(' COLLATE', maxsplit=1)[0]}"
