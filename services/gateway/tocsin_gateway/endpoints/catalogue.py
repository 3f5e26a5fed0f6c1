"""`/asyncapi.json`: the socket's messages, and the events of each watched table with its real columns where the source can be asked."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import msgspec

from tocsin.subject import Pattern, change_subject, encode_token
from tocsin_gateway.admission.grant import Grant
from tocsin_gateway.protocol import ProtocolError
from tocsin_gateway.source.watched import Watched

TYPES: Final[dict[str, tuple[str, ...]]] = {
    "boolean": ("boolean",),
    **dict.fromkeys(("smallint", "integer", "bigint", "oid"), ("integer",)),
    # NaN and the infinities are no JSON numbers; PostgreSQL writes them as text.
    **dict.fromkeys(("real", "double precision", "numeric"), ("number", "string")),
}
EXACT: Final = frozenset({"bigint", "numeric"})
FORMATS: Final = {"uuid": "uuid", "date": "date", "timestamp with time zone": "date-time"}


class Catalogue:
    """The document, made when somebody wants it."""

    def __init__(self, generic: Path, watched: Watched | None = None, prefix: str = "pg", source: str = "") -> None:
        self._generic: Final[dict[str, Any]] = msgspec.json.decode(generic.read_bytes())
        self._watched = watched or Watched()
        self._prefix = prefix
        self._source = source

    @property
    def generic(self) -> dict[str, Any]:
        """Without any table."""
        return self._generic

    async def document(self, grant: Grant | None) -> dict[str, Any]:
        """With the tables all of whose changes the client may have; the generic one where that is none, or the source can't be asked."""
        if not self._watched.known or grant is None:
            return self._generic
        rows = await self._watched.rows()
        tables = [(names, list(rows)) for names, rows in groupby(rows, key=lambda row: (row["schema"], row["table"]))]
        seen = (self._shown(grant, *names, rows) for names, rows in tables if self._may_see(grant, *names))
        return described(self._generic, self._prefix, self._source, [rows for rows in seen if rows])

    @staticmethod
    def _shown(grant: Grant, schema: str, table: str, rows: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Without the columns that the token hides."""
        hidden = grant.visibility.hidden((encode_token(schema), encode_token(table)))
        return [row for row in rows if row["column"] not in hidden]

    def _may_see(self, grant: Grant, schema: str, table: str) -> bool:
        try:
            grant.check(Pattern(f"{self._prefix}.{encode_token(self._source)}.change.{encode_token(schema)}.{encode_token(table)}.>"), None)
        except ProtocolError:
            return False
        return True


def described(generic: Mapping[str, Any], prefix: str, source: str, tables: Iterable[list[Mapping[str, Any]]]) -> dict[str, Any]:
    """The generic document with a channel and a message for each table; a table is its columns' rows, as catalogue.sql gives them."""
    document = copy.deepcopy(dict(generic))
    for rows in tables:
        first = rows[0]
        schema, table = first["schema"], first["table"]
        name = f"{encode_token(schema)}-{encode_token(table)}".replace("%", "_")
        data = _data(rows)
        root = change_subject(prefix, source, schema, table, "insert").rpartition(".")[0]
        document["components"]["schemas"][f"row-{name}"] = _row(rows)
        document["components"]["messages"][f"change-{name}"] = {
            "name": f"{schema}.{table}",
            "title": f"A change of {schema}.{table}",
            "summary": first["table_comment"] or f"One committed change of a row of {schema}.{table}; the event of an `event` message",
            "contentType": "application/cloudevents+json",
            "payload": {"allOf": [{"$ref": "#/components/schemas/CloudEvent"}, {"type": "object", "properties": {"data": data}}]},
        }
        document["channels"][f"change-{name}"] = {
            "address": f"{root}.{{op}}" + "".join(f".{{{_parameter(column)}}}" for column in first["route"]),
            "title": f"{schema}.{table}",
            "description": f"Subscribe to `{root}.>` for all of it",
            "parameters": {
                "op": {"enum": list(first["ops"])},
                **{_parameter(column): {"description": f"The value of {column} as one token"} for column in first["route"]},
            },
            "messages": {"change": {"$ref": f"#/components/messages/change-{name}"}},
        }
        document["operations"][f"change-{name}"] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/change-{name}"},
            "title": f"Changes of {schema}.{table}",
        }
    return document


def _parameter(column: str) -> str:
    """AsyncAPI allows letters, digits, _ and - in a parameter's name."""
    return encode_token(column).replace("%", "_")


def _data(rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    first = rows[0]
    name = f"{encode_token(first['schema'])}-{encode_token(first['table'])}".replace("%", "_")
    key = {row["column"]: _column(row) for row in rows if row["in_key"]}
    whole = {"$ref": f"#/components/schemas/row-{name}"}
    kinds: dict[str, dict[str, Any]] = {
        "full": {**whole, "description": "The whole row before"},
        "changed": {
            "type": "object",
            "properties": {row["column"]: _column(row) for row in rows},
            "description": "On update what changed, on delete the whole row",
        },
        "none": {"type": "object", "description": "On delete alone: the whole row"},
    }
    return {
        "type": "object",
        "required": ["op", "schema", "table"],
        "properties": {
            "op": {"enum": sorted({*first["ops"], "read"})},
            "schema": {"const": first["schema"]},
            "table": {"const": first["table"]},
            **({"key": {"type": "object", "properties": key, "required": sorted(key)}} if key else {}),
            "new": whole,
            "old": kinds[first["old"]],
            "truncated": {"type": "boolean", "description": "The event was too large: it has its key only"},
        },
    }


def _row(rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    return {"type": "object", "properties": _properties(rows), "required": [row["column"] for row in rows]}


def _properties(rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    return {row["column"]: _column(row) for row in rows}


def _column(row: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON that a column's values become: PostgreSQL's own, with pinned settings."""
    described = {"description": " · ".join(filter(None, (row["type"], row["comment"])))}
    if row["base"] in ("json", "jsonb") and not row["is_array"]:
        return described
    null = ["null"] if row["nullable"] else []
    if row["labels"]:
        return {"enum": [*row["labels"], *([None] if null else [])], **described}
    types = [*_types(row), *null]
    form = {"format": FORMATS[row["base"]]} if row["base"] in FORMATS and not row["is_array"] else {}
    return {"type": types if len(types) > 1 else types[0], **form, **described}


def _types(row: Mapping[str, Any]) -> tuple[str, ...]:
    base = row["base"]
    if row["is_array"]:
        return ("array",)
    if row["kind"] == "c":
        return ("object",)
    if base in EXACT and row["exact_numbers"]:
        return ("string",)
    return TYPES.get(base, ("string",))
