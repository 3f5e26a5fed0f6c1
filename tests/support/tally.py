"""The oracle for long runs: what each side has, in a few bytes an event, and whether it came once and in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Tally:
    """One observer's events by their journal sequence. `disorder` counts events that came behind a later one of the same key."""

    seen: set[int] = field(default_factory=set)
    repeated: int = 0
    disorder: int = 0
    samples: list[str] = field(default_factory=list)
    _last: dict[str, int] = field(default_factory=dict)

    def add(self, event: dict[str, Any]) -> None:
        """One event as it arrived; a key that an update changed counts under both."""
        seq = int(event["sequence"])
        if seq in self.seen:
            self.repeated += 1
            self._sample(f"{seq} repeated")
            return
        self.seen.add(seq)
        data = event["data"]
        table = data["table"]
        for key in {f"{table}/{event.get('subject', '')}", *([f"{table}/{old}"] if (old := changed_key(data)) is not None else [])}:
            if self._last.get(key, 0) > seq:
                self.disorder += 1
                self._sample(f"{seq} of {key} came behind {self._last[key]}")
            self._last[key] = max(seq, self._last.get(key, 0))

    def _sample(self, text: str) -> None:
        if len(self.samples) < 10:
            self.samples.append(text)


@dataclass(slots=True)
class Replica:
    """Tables as the events alone make them: what a consumer that applies every event has."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def apply(self, event: dict[str, Any]) -> None:
        data = event["data"]
        table = self.rows.setdefault(data["table"], {})
        if data["op"] == "truncate":
            table.clear()
            return
        key = event["subject"]
        if (old := changed_key(data)) is not None or data["op"] == "delete":
            table.pop(key if old is None else old, None)
        if data["op"] != "delete":
            table[key] = data["new"]


def changed_key(data: dict[str, Any]) -> str | None:
    """The key that an update took from its row, of tables whose key is the column `id`."""
    old = data.get("old") if data["op"] == "update" else None
    return str(old["id"]) if old and "id" in old and old["id"] != data["key"]["id"] else None
