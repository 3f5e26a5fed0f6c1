"""The user that PostgreSQL runs as. It refuses uid 0, so as root it gets a user of its own, who must reach its files."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import threading
from pathlib import Path
from typing import Final

from tocsin.errors import OperatorError

NAME: Final = "embedded_postgres"
_one_at_a_time: Final = threading.Lock()


def prepare(data: Path, programs: Path) -> str | None:
    """The user's name as root, made where it is missing, with a way to `data` and `programs`; None as anybody else.

    Folders above that only root may enter get the right to pass through (o+x), not the right to list or read them. Blocking.
    """
    if os.geteuid() != 0:
        return None
    with _one_at_a_time:
        _make_user()
        for folder in (*data.parents, programs.parent, *programs.parent.parents):
            _add_mode(folder, stat.S_IXOTH)
        for room in ("bin", "lib", "share"):
            _open_tree(programs.parent / room)
    if data.exists() and data.owner() != NAME:
        _own_tree(data)
    return NAME


def make_folder(folder: Path, user: str | None) -> None:
    """A new folder that only the server's user may enter."""
    folder.mkdir(mode=0o700)
    if user is not None:
        shutil.chown(folder, user, user)


def _make_user() -> None:
    try:
        pwd.getpwnam(NAME)
    except KeyError:
        pass
    else:
        return
    try:
        subprocess.run(["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/bin/false", NAME], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        raise OperatorError(
            f"PostgreSQL refuses to run as root, and a user for it could not be made: {reason}", f"useradd --system {NAME}, or run this as a normal user"
        ) from error


def _own_tree(folder: Path) -> None:
    """A data folder that was copied or restored by root belongs to the server's user again."""
    for path in (folder, *folder.rglob("*")):
        shutil.chown(path, NAME, NAME)


def _open_tree(folder: Path) -> None:
    if not folder.is_dir():
        return
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            executable = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
            _add_mode(path, stat.S_IROTH | (stat.S_IXOTH if executable else 0))


def _add_mode(path: Path, bits: int) -> None:
    mode = path.stat().st_mode
    if mode & bits != bits:
        path.chmod(stat.S_IMODE(mode) | bits)
