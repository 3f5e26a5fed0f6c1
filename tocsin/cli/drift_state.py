"""How far a run of `tocsin drift` is: kept in a file, so that an interrupted one goes on, in the middle of a table too."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ValidationError

from tocsin.errors import OperatorError
from tocsin_check.auditing.outcome import Outcome
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.sides import Sides
from tocsin_check.watch.report import TableReport
from tocsin_check.watch.unfinished import Begun, Reached, shape_of

KEPT: Final = timedelta(days=1)
_EVERY: Final = 2.0
_SHARE: Final = 0.05
"""Of the time that may go into writing: the file names every drifted row."""
_IDENTITY: Final = "SELECT current_database() || ' ' || coalesce(inet_server_addr()::text, '') || ' ' || current_setting('port')"
_ANOTHER: Final = "name another file with --state, or remove this one"


class Noted(BaseModel):
    """The file: what was audited, of which pair of databases."""

    pair: list[str]
    exact: bool = False
    tables: dict[str, TableReport] = {}
    begun: dict[str, Begun] = {}


class State:
    """Without a path it remembers nothing."""

    def __init__(self, path: Path | None, *, exact: bool) -> None:
        self._path = path
        self._exact = exact
        self._noted = Noted(pair=[])
        self._next = 0.0
        self._reached: Reached | None = None

    def check(self) -> None:
        """Raises OperatorError where the file could not be written, before any work is done."""
        if self._path is not None:
            check_writable(self._path, "--state")

    async def restore(self, sides: Sides) -> None:
        """What the file says of these two databases, within a day. Raises OperatorError for another file."""
        pair = [str(await sides.source.fetchval(_IDENTITY)), str(await sides.replica.fetchval(_IDENTITY))]
        self._noted = Noted(pair=pair, exact=self._exact)
        if self._path is None or not self._path.exists():
            return
        try:
            noted = Noted.model_validate_json(self._path.read_text(encoding="utf-8"))
        except (ValidationError, OSError, UnicodeDecodeError) as error:
            raise OperatorError(f"{self._path} is no state of tocsin drift", _ANOTHER) from error
        if noted.pair != pair:
            raise OperatorError(f"{self._path} is of other databases: {', '.join(noted.pair)}", _ANOTHER)
        if noted.exact != self._exact:
            raise OperatorError(f"{self._path} is of a run {'with' if noted.exact else 'without'} --exact", _ANOTHER)
        oldest = datetime.now(UTC) - KEPT
        self._noted.tables = {name: report for name, report in noted.tables.items() if report.verified_at is not None and report.verified_at > oldest}
        self._noted.begun = {name: begun for name, begun in noted.begun.items() if begun.started > oldest}

    def done(self, name: str) -> TableReport | None:
        return self._noted.tables.get(name)

    def begun(self, table: Comparable) -> Outcome | None:
        """Where an earlier run was interrupted in this table; None where it has to be read from its beginning."""
        begun = self._noted.begun.get(str(table.name))
        return begun.outcome() if begun is not None and begun.shape == shape_of(table) else None

    def note_done(self, name: str, report: TableReport) -> None:
        """Only what is settled: a table that is pending or could not be read is audited again."""
        self._reached = None
        self._noted.begun.pop(name, None)
        if report.status in ("in_sync", "drift"):
            self._noted.tables[name] = report
        self._write()

    def note_begun(self, table: Comparable, outcome: Outcome) -> None:
        """After a block; it is written every few seconds, and by `interrupted`."""
        if self._path is None or outcome.reached is None:
            return
        self._reached = Reached.of(table, outcome)
        begun = time.monotonic()
        if begun >= self._next:
            self.interrupted()
            self._next = time.monotonic() + max(_EVERY, (time.monotonic() - begun) / _SHARE)

    def interrupted(self) -> None:
        """Write down where the table at work is."""
        if self._reached is not None:
            self._noted.begun[str(self._reached.table.name)] = self._reached.begun()
            self._write()

    def clear(self) -> None:
        """The run has come to its end; the next one begins anew."""
        self._noted.tables.clear()
        self._noted.begun.clear()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        if self._path is None:
            return
        fresh = self._path.with_name(self._path.name + ".new")
        fresh.touch(mode=0o600)  # it names keys
        fresh.write_text(self._noted.model_dump_json(indent=1), encoding="utf-8")
        fresh.replace(self._path)


def check_writable(path: Path, option: str) -> None:
    """Raises OperatorError for a path that no file can be written to."""
    if path.is_dir():
        raise OperatorError(f"{option}: {path} is a folder", "name a file", exit_code=2)
    if not path.absolute().parent.is_dir():
        raise OperatorError(f"{option}: there is no folder {path.absolute().parent}", "make it, or name a file in another one", exit_code=2)
