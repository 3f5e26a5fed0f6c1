"""docs/capture.md names every field of an event and every header of its message."""

from __future__ import annotations

import re
from pathlib import Path

from tocsin import event
from tocsin_listener.replay import SUBJECT

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "capture.md").read_text()


def test_every_field_of_the_envelope_is_named() -> None:
    sql = (ROOT / "services/listener/tocsin_listener/sql/journal.sql").read_text()
    fields = set(re.findall(r'[{,]"(\w+)":', sql))
    assert {"annotation", "txposition", "sequence"} <= fields, "the envelope is built there"
    assert [field for field in sorted(fields | set(event.Event.__struct_fields__)) if f"`{field}`" not in TEXT] == []


def test_every_header_is_named() -> None:
    for header in (event.MSG_ID, event.EPOCH, event.BATCH, event.SNAPSHOTS, event.COPY, SUBJECT):
        assert f"`{header}`" in TEXT, header
