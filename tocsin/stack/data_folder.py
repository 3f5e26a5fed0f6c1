"""The data folder of `tocsin up`: one run at a time, told by a lock that the kernel lets go when its holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from tocsin.errors import OperatorError


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """The folder, made when missing, for this process alone. Raises OperatorError that names the process that has it."""
    folder = folder.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a+")
    except OSError as error:
        raise OperatorError(f"--data {folder}: {error.strerror}", "choose a folder that you may write to, with --data", exit_code=2) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise OperatorError(
                f"`tocsin up` already runs on {folder} (process {holder})",
                "use that one, stop it with Ctrl-C, or start a second one with --data OTHER and other TOCSIN_*_PORT settings",
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield folder
