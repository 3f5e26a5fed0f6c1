"""Names in SQL, as PostgreSQL quotes them. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple


class TableName(NamedTuple):
    """A table's schema and name as the catalog has them, unquoted."""

    schema: str
    name: str

    @property
    def sql(self) -> str:
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


def quoted(identifier: str) -> str:
    """Always in double quotes, so that no keyword needs to be known."""
    return '"' + identifier.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string constant."""
    if "\\" in text:
        return " E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
    return "'" + text.replace("'", "''") + "'"


def slot_name(database: str, identity: str) -> str:
    """`tocsin_<database>_<identity>`, in the letters that a replication slot may have, at most 63 of them."""
    readable = re.sub(r"[^a-z0-9_]", "_", database.lower())[:40]
    return f"tocsin_{readable}_{identity[:12]}"
