"""What watches Tocsin hangs together: an alert has its section in the runbook, and the dashboard is one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

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


def test_the_dashboard_is_there_on_the_first_look() -> None:
    """Its data source is provisioned, its folder is mounted where the provider reads it, and no panel covers another."""
    dashboard = json.loads((ROOT / "deploy/grafana/dashboards/tocsin.json").read_text())
    source = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"][0]
    provider = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/tocsin.yaml").read_text())["providers"][0]
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
    mounted = {volume.split(":")[1]: volume.split(":")[0] for volume in compose["grafana"]["volumes"]}
    assert mounted[provider["options"]["path"]] == "./grafana/dashboards"
    assert mounted["/etc/grafana/provisioning"] == "./grafana/provisioning"
    assert compose["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == f"{provider['options']['path']}/tocsin.json"
    assert source["url"] == "http://prometheus:9090"
    assert all(panel["datasource"] == {"type": source["type"], "uid": source["uid"]} for panel in dashboard["panels"])
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_prometheus_scrapes_each_service_where_compose_has_it() -> None:
    jobs = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    services = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
    targets = {tuple(target.split(":")) for job in jobs for config in job["static_configs"] for target in config["targets"]}
    assert targets == {(name, service["ports"][0].rpartition(":")[2]) for name, service in services.items() if name in ("listener", "gateway", "checker")}
