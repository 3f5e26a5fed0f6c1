"""`make release` in a clone: what it refuses, with the fix, and what it leaves."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tocsin import __version__

ROOT = Path(__file__).parents[2]
TAG = f"v{__version__}"


def git(clone: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=clone, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of what is committed, with the working tree's release files, committed too."""
    folder = tmp_path / "clone"
    git(ROOT, "clone", "--quiet", "--no-tags", str(ROOT), str(folder))
    for name in (".ci/release", ".ci/check", "Makefile", "pyproject.toml", "requirements/release.lock"):
        shutil.copy(ROOT / name, folder / name)
    # `make release` runs this test in a tree whose version has its section already.
    changes = folder / "CHANGELOG.md"
    changes.write_text(changes.read_text().replace(f"## {__version__} - ", "## 0.0.0 - "))
    for name, value in (("user.name", "Test"), ("user.email", "test@example.org")):
        git(folder, "config", name, value)
    commit(folder, "the working tree's")
    return folder


def commit(clone: Path, why: str) -> None:
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--allow-empty", "--message", why)


def with_section(clone: Path) -> None:
    changes = clone / "CHANGELOG.md"
    changes.write_text(f"{changes.read_text().rstrip()}\n\n## {__version__} - 2026-11-23\n\n### Added\n\n- It rings.\n")
    commit(clone, "the release's changes")


def release(clone: Path, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        ["make", "release", f"PYTHON={sys.executable}"], cwd=clone, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_it_refuses_a_dirty_tree(clone: Path) -> None:
    with_section(clone)
    (clone / "left_over.txt").touch()
    code, said = release(clone, CHECK="help", NO_AUDIT="1")
    assert code != 0
    assert "left_over.txt" in said
    assert "fix: commit" in said
    assert TAG not in git(clone, "tag")


def test_it_refuses_a_version_without_its_changes(clone: Path) -> None:
    code, said = release(clone, CHECK="help", NO_AUDIT="1")
    assert code != 0
    assert f"## {__version__} - " in said
    assert "fix: put it below" in said


def test_it_refuses_a_version_that_was_released(clone: Path) -> None:
    with_section(clone)
    git(clone, "tag", TAG)
    code, said = release(clone, CHECK="help", NO_AUDIT="1")
    assert code != 0
    assert f"{TAG} is tagged already" in said
    assert "fix: raise version" in said


def test_it_tags_nothing_when_a_check_fails(clone: Path) -> None:
    with_section(clone)
    code, said = release(clone, CHECK="no-such-check", NO_AUDIT="1")
    assert code != 0
    assert "No rule to make target 'no-such-check'" in said
    assert TAG not in git(clone, "tag")


def test_what_failed_beside_others_is_tried_once_more_alone_and_what_fails_twice_tags_nothing(clone: Path) -> None:
    with_section(clone)
    (clone / "Makefile").write_text(
        "release:\n\t@.ci/release\ncheck:\n\t@echo FAILED tests/test_it.py::test_a; false\nlint:\n\ntest:\n\t@echo alone: $(JOBS) $(ARGS); false\n"
    )
    commit(clone, "a check that fails")
    code, said = release(clone, NO_AUDIT="1")
    assert code != 0
    assert "once more, alone: 1 tests that failed" in said
    assert "alone: 0 --last-failed" in said
    assert "NOT audited" not in said, "it has ended there"
    assert TAG not in git(clone, "tag")


@pytest.mark.slow
def test_it_builds_checks_and_tags(clone: Path) -> None:
    with_section(clone)
    code, said = release(clone, CHECK="help", NO_AUDIT="1")
    assert code == 0, said
    assert "NOT audited" in said
    told = git(clone, "tag", "--list", "--format=%(contents)", TAG)
    assert "- It rings." in told
    assert "tocsin up" not in told, "the notes of this version alone"
    dist = clone / "dist"
    sums = dict(line.split()[::-1] for line in (dist / "SHA256SUMS").read_text().splitlines())
    assert sorted(sums) == sorted((f"tocsin-{__version__}-py3-none-any.whl", f"tocsin-{__version__}.tar.gz", "tocsin.cdx.json"))
    assert all(hashlib.sha256((dist / name).read_bytes()).hexdigest() == written for name, written in sums.items())
    listed = json.loads((dist / "tocsin.cdx.json").read_text())
    assert {"asyncpg", "nats-py", "fastapi"} <= {component["name"] for component in listed["components"]}
    assert (dist / "RELEASE.md").read_text() == "### Added\n\n- It rings.\n"
    first = (dist / f"tocsin-{__version__}-py3-none-any.whl").read_bytes()
    subprocess.run(
        ["make", "dist", f"PYTHON={sys.executable}"],
        cwd=clone,
        check=True,
        capture_output=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": git(clone, "log", "-1", "--format=%ct").strip()},
    )
    assert (dist / f"tocsin-{__version__}-py3-none-any.whl").read_bytes() == first, "the same bytes again"


class Vulnerabilities(BaseHTTPRequestHandler):
    """A database of its own on loopback, by OSV's interface: one line on each package that its server `knows`."""

    def do_POST(self) -> None:
        assert isinstance(self.server, Database)
        package = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]
        self.server.asked.add(package["name"])
        ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.0"}]}]
        line = {"id": "TEST-2026-1", "summary": "It rings by itself.", "affected": [{"package": package, "ranges": ranges}]}
        answer = json.dumps({"vulns": [line]} if package["name"] in self.server.knows else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        pass


class Database(ThreadingHTTPServer):
    knows: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Vulnerabilities)
        self.asked: set[str] = set()


@pytest.mark.slow
def test_the_audit_asks_for_every_package_and_fails_for_a_known_vulnerability(clone: Path) -> None:
    with Database() as database:
        threading.Thread(target=database.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{database.server_port}/v1/query"

        def audit() -> tuple[int, str]:
            command = ["make", "audit", f"PYTHON={sys.executable}", f"ARGS=--vulnerability-service osv --osv-url {url} --cache-dir {clone / '.audit'}"]
            done = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False)
            return done.returncode, done.stdout + done.stderr

        assert audit()[0] == 0
        locked = {line.partition("==")[0] for line in (clone / "requirements/runtime.lock").read_text().splitlines() if "==" in line and line[0] != " "}
        assert len(locked) > 30
        assert {name for name in locked - database.asked if name != "colorama"} == set(), "colorama is for Windows alone"
        database.knows = ("uvicorn",)
        code, said = audit()
        database.shutdown()
    assert code != 0
    assert "uvicorn" in said
    assert "TEST-2026-1" in said
