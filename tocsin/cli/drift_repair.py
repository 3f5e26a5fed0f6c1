"""`tocsin drift --repair`: what it writes where."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tocsin import postgres
from tocsin_check import sessions
from tocsin_check.auditing import repair
from tocsin_check.auditing.repair import Repair
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.sides import Sides
from tocsin_check.watch.auditor import PATIENCE
from tocsin_check.watch.checker import Checker

_ROUNDS: Final = 100
_HEAD: Final = """-- By tocsin drift --repair. Run it on the replica, soon: psql -v ON_ERROR_STOP=1 -f FILE
-- Each statement does nothing where the replica holds another value than the one that was seen. Afterwards: tocsin drift
"""

OnRows = Callable[[int, int], None]
"""Told of how many rows are done, of how many."""


class Mending:
    """SQL to the standard output, to a file, or to the replica. `prints` says that the standard output is taken.

    `unfinished` are the tables of which more rows have drifted than are known by key, so that the SQL is not for all.
    """

    def __init__(self, replica_url: str, *, apply: bool, output: Path | None, to_stdout: bool) -> None:
        self._replica_url = replica_url
        self._output = output
        self.applies = apply
        self.prints = not apply and output is None and to_stdout
        self.unfinished: list[str] = []
        self._script: list[str] = []

    async def mend(self, sides: Sides, table: Comparable, checker: Checker, on_rows: OnRows = lambda _done, _of: None) -> list[Repair]:
        """One table whose drift stands in the checker's ledger. Raises Lagging, OperatorError."""
        if not table.source.unique:
            rows = checker.ledger.keys(str(table.name))
            return [Repair(key, "drift", "", "the table has no key, so no statement can name the row; copy it anew") for key in rows[:1]]
        return await (self._apply if self.applies else self._write)(sides, table, checker, on_rows)

    async def _write(self, sides: Sides, table: Comparable, checker: Checker, on_rows: OnRows) -> list[Repair]:
        name, done = str(table.name), []
        keys = checker.ledger.keys(name)
        async for batch in repair.statements(sides, table, keys, patience=PATIENCE):
            done += batch
            on_rows(len(done), len(keys))
        if not checker.ledger.knows_all(name):
            self.unfinished.append(name)
        written = [each for each in done if each.left is None]
        if written:
            self._script.append(f"-- {' '.join(str(table.name).split())}\n")  # a name may hold a line's end, and the comment must not end there
            self._script += [f"{each.statement}\n" for each in written]
        return done

    async def _apply(self, sides: Sides, table: Comparable, checker: Checker, on_rows: OnRows) -> list[Repair]:
        """Again and again where more rows drift than are known by key, as long as it helps."""
        name, done = str(table.name), []
        writer = await sessions.open_repairer(self._replica_url)
        try:
            for _ in range(_ROUNDS):
                written, keys = [], checker.ledger.keys(name)
                async for batch in repair.apply(sides, table, keys, writer, patience=PATIENCE):
                    written += batch
                    on_rows(len(written), len(keys))
                done += written
                whole = checker.ledger.knows_all(name)
                await checker.auditor.audit_again(sides, table, whole=not whole)
                if whole or all(each.left for each in written):
                    break
        finally:
            await postgres.close(writer)
        return done

    def finish(self) -> None:
        """Write the script, where there is one."""
        if self.applies:
            return
        text = _HEAD + (repair.preamble(sessions.PINNED) + "".join(self._script) + "COMMIT;\n" if self._script else "-- nothing to repair\n")
        if self._output is not None:
            self._output.touch(mode=0o600)
            self._output.write_text(text, encoding="utf-8")
        elif self.prints:
            sys.stdout.write(text)
        self._script.clear()
