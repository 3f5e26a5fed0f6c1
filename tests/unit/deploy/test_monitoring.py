"""What watches Tocsin hangs together: an alert has its section in the runbook, and the dashboard is one."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_each_alert_has_a_section_in_the_runbook_and_no_section_is_left_over() -> None:
    alerts = re.findall(r"- alert: (\w+)", (ROOT / "deploy/prometheus/alerts.yml").read_text())
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs/operations/runbook.md").read_text(), re.MULTILINE)
    assert alerts
    assert sections == alerts


def test_each_panel_of_the_dashboard_asks_for_something_of_ours() -> None:
    dashboard = json.loads((ROOT / "deploy/grafana/dashboards/tocsin.json").read_text())
    assert dashboard["panels"]
    for panel in dashboard["panels"]:
        assert all("tocsin_" in target["expr"] for target in panel["targets"]), panel["title"]
