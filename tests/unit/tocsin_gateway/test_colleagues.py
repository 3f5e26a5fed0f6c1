"""The workers' metrics as one text."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tocsin_gateway.colleagues import merged


def counted(count: int) -> bytes:
    registry = CollectorRegistry()
    Counter("frames", "Frames", registry=registry).inc(count)
    Gauge("clients", "Clients, {of} a kind", ["kind"], registry=registry).labels('web"socket').set(count)
    return generate_latest(registry)


def test_each_family_stands_once_and_each_sample_says_its_worker() -> None:
    text = merged([(0, counted(3)), (1, counted(4))]).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert text.count("# HELP frames_total ") == text.count("# TYPE frames_total counter") == 1
    assert {(s.labels["worker"], s.value) for s in families["frames"].samples if s.name == "frames_total"} == {("0", 3.0), ("1", 4.0)}
    assert {(s.labels["worker"], s.labels["kind"], s.value) for s in families["clients"].samples} == {("0", 'web"socket', 3.0), ("1", 'web"socket', 4.0)}
