"""docs/operations: every metric and alert is explained, nothing that is not there is, and each test that a page names exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from tocsin.service import Readiness, add_health
from tocsin_check.metrics import Metrics as CheckMetrics
from tocsin_check.metrics import ReportCollector
from tocsin_check.watch.checker import Checker
from tocsin_gateway.metrics import Metrics as GatewayMetrics
from tocsin_listener.meters import Meters

ROOT = Path(__file__).parents[2]
METRICS = (ROOT / "docs/operations/metrics.md").read_text()
ALERTS = (ROOT / "deploy/prometheus/alerts.yml").read_text()
PAGES = [ROOT / "docs/scaling.md", *sorted((ROOT / "docs/operations").glob("*.md"))]
NAMED = sorted({found for page in PAGES for found in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text())})


def names(families: Iterable[Metric]) -> set[str]:
    return {f"{family.name}{'_total' if family.type == 'counter' else ''}" for family in families if family.name.startswith("tocsin_")}


def exported() -> set[str]:
    gateway, check, each = CollectorRegistry(), CollectorRegistry(), CollectorRegistry()
    add_health(FastAPI(), each, lambda: Readiness(ready=True, detail={}))
    GatewayMetrics(gateway)
    CheckMetrics(check)
    check.register(ReportCollector(Checker("postgresql://127.0.0.1/a", "postgresql://127.0.0.1/b")))
    return names(each.collect()) | names(Meters().registry.collect()) | names(gateway.collect()) | names(check.collect())


def test_every_metric_is_explained_and_no_other() -> None:
    explained = set(re.findall(r"^\| `(tocsin_\w+)` \|", METRICS, re.MULTILINE))
    assert explained == exported(), "docs/operations/metrics.md has a line for each"


def test_every_alert_is_explained_beside_the_metric_that_it_watches() -> None:
    rules = re.findall(r"- alert: (\w+)\s+expr: (.+)", ALERTS)
    assert rules
    for alert, expression in rules:
        line = next((line for line in METRICS.splitlines() if f"**{alert}**" in line), None)
        assert line is not None, f"docs/operations/metrics.md does not say what **{alert}** watches"
        metric = re.search(r"tocsin_\w+|up", expression)
        assert metric is not None
        assert f"`{metric[0]}`" in line, f"{alert} watches {metric[0]}"
    assert set(re.findall(r"\*\*(Tocsin\w+)\*\*", METRICS)) == {alert for alert, _ in rules}


@pytest.mark.parametrize(("path", "name"), NAMED, ids=lambda value: value.rpartition("/")[2])
def test_each_test_that_a_page_names_exists(path: str, name: str) -> None:
    source = ROOT / path
    assert source.is_file(), path
    functions = {node.name for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert not name or name in functions, f"{path} has no {name}"


def test_the_ten_likeliest_incidents_and_more_are_each_tried() -> None:
    rows = re.findall(r"^\| \d+ \|.*$", (ROOT / "docs/operations/incidents.md").read_text(), re.MULTILINE)
    assert len(rows) >= 10
    assert [row for row in rows if not re.search(r"`tests/[\w/]+\.py::test_\w+` \|$", row)] == []


def test_the_index_leads_to_every_page() -> None:
    index = (ROOT / "docs/operations.md").read_text()
    assert [page.name for page in (ROOT / "docs/operations").glob("*.md") if f"operations/{page.name}" not in index] == []
