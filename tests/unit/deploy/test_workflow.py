"""The workflow for a build machine elsewhere runs what there is to run here, and the vulnerability database's question is not left out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
WORKFLOW: dict[Any, Any] = yaml.safe_load((ROOT / ".github/workflows/check.yml").read_text())
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
RUNS = [(name, step["run"]) for name, job in WORKFLOW["jobs"].items() for step in job["steps"] if "run" in step]


@pytest.mark.parametrize(("job", "command"), RUNS)
def test_each_step_is_a_target_of_make_or_the_ci_script(job: str, command: str) -> None:
    program, *words = command.split()
    if program == "bash":
        assert (ROOT / words[0]).is_file()
    else:
        assert program == "make"
        assert {word for word in words if "=" not in word} <= TARGETS


def test_the_audit_runs_with_each_push_and_every_week() -> None:
    assert ("audit", "make audit") in RUNS
    on = WORKFLOW[True]  # YAML 1.1 reads the key `on` as true
    assert {"push", "pull_request", "schedule"} <= set(on)
    assert "audit" in WORKFLOW["jobs"]["artifacts"]["needs"], "nothing is handed out that was not audited"
    assert "make dist sbom" in [command for _, command in RUNS]


def test_every_job_ends_and_may_only_read() -> None:
    assert all(job["timeout-minutes"] <= 120 for job in WORKFLOW["jobs"].values())
    assert WORKFLOW["permissions"] == {"contents": "read"}


def test_the_python_versions_are_those_that_the_package_names() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {c.rpartition(" ")[2] for c in project["classifiers"] if re.search(r":: 3\.\d+$", c)}
    assert set(WORKFLOW["jobs"]["tests"]["strategy"]["matrix"]["python"]) == named
