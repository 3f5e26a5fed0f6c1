"""deploy/kubernetes: what the example renders to keeps the promises of docs/operations/deploy.md, and names what is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tocsin.duration import parse_duration
from tocsin.settings import Settings

KUBERNETES = Path(__file__).parents[3] / "deploy/kubernetes"
OLDEST, NEWEST = "1.30.0", "1.37.0"
SERVICES = {"listener": "listener", "gateway": "gateway", "checker": "check"}
Object = dict[str, Any]


def documents(folder: str) -> list[Object]:
    """Every object of a folder's resources, as kustomize would read them."""
    listed = yaml.safe_load((KUBERNETES / folder / "kustomization.yaml").read_text())
    return [one for name in listed["resources"] for one in yaml.safe_load_all((KUBERNETES / folder / name).read_text())]


def named(kind: str, name: str) -> Object:
    (found,) = (one for one in documents("base") if one["kind"] == kind and one["metadata"]["name"] == name)
    return found


def pod(service: str) -> Object:
    spec: Object = named("Deployment", f"tocsin-{service}")["spec"]["template"]["spec"]
    return spec


def settings(name: str) -> dict[str, str]:
    listed = yaml.safe_load((KUBERNETES / name / "kustomization.yaml").read_text())
    return dict(literal.split("=", 1) for literal in listed["configMapGenerator"][0]["literals"])


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_fits_kubernetes_schema(version: str) -> None:
    kinds = set()
    for one in documents("base"):
        kubernetes_validate.validate(one, version, strict=True)
        kinds.add(one["kind"])
    assert kinds == {"Deployment", "Service", "ServiceAccount", "PodDisruptionBudget", "HorizontalPodAutoscaler", "NetworkPolicy"}


def test_what_kustomize_reads_is_there_and_every_file_is_read() -> None:
    for folder in ("base", "monitoring", "example"):
        listed = yaml.safe_load((KUBERNETES / folder / "kustomization.yaml").read_text())
        for name in (*listed["resources"], *listed.get("components", ())):
            assert (KUBERNETES / folder / name).exists(), name
        read = {name for name in listed["resources"] if name.endswith(".yaml")}
        assert {file.name for file in (KUBERNETES / folder).glob("*.yaml")} == read | {"kustomization.yaml"}


@pytest.mark.parametrize("service", SERVICES)
def test_no_container_has_more_rights_than_it_needs(service: str) -> None:
    spec = pod(service)
    (container,) = spec["containers"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {"readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("service", SERVICES)
def test_probes_ask_what_they_should(service: str) -> None:
    (container,) = pod(service)["containers"]
    assert container["args"] == [SERVICES[service]]
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz", "a NATS that is away must not restart anybody"
    assert container["startupProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    (port,) = container["ports"]
    assert port["containerPort"] == Settings.model_fields[f"{SERVICES[service]}_port"].default
    (offered,) = named("Service", f"tocsin-{service}")["spec"]["ports"]
    assert (offered["port"], offered["targetPort"]) == (port["containerPort"], port["name"])


@pytest.mark.parametrize("service", SERVICES)
def test_every_setting_exists_and_every_secret_is_a_file_that_is_mounted(service: str) -> None:
    spec = pod(service)
    (container,) = spec["containers"]
    (secrets,) = (volume["secret"] for volume in spec["volumes"] if "secret" in volume)
    (mount,) = (mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "secrets")
    mounted = {f"{mount}/{item['path']}" for item in secrets["items"]}
    given = {one["name"]: one.get("value") for one in container["env"]}
    for name in (*given, *settings("base"), *settings("example")):
        assert name.removeprefix("TOCSIN_").lower() in Settings.model_fields, name
    assert {value for value in given.values() if value is not None} == mounted
    assert ("database_url" in str(secrets)) == (service != "gateway"), "the gateway needs no database"


def test_a_gateway_has_the_time_to_close_its_clients() -> None:
    spec = pod("gateway")
    (container,) = spec["containers"]
    drain = parse_duration(settings("base")["TOCSIN_GATEWAY_DRAIN"]).total_seconds()
    assert spec["terminationGracePeriodSeconds"] > container["lifecycle"]["preStop"]["sleep"]["seconds"] + drain + 5
    deployment = named("Deployment", "tocsin-gateway")["spec"]
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert "replicas" not in deployment, "the autoscaler's"
    assert named("HorizontalPodAutoscaler", "tocsin-gateway")["spec"]["minReplicas"] > 1


def test_a_node_that_is_drained_takes_one_pod_at_a_time() -> None:
    for service in ("listener", "gateway"):
        budget = named("PodDisruptionBudget", f"tocsin-{service}")["spec"]
        assert budget["maxUnavailable"] == 1
        assert budget["selector"] == named("Deployment", f"tocsin-{service}")["spec"]["selector"]
    assert named("Deployment", "tocsin-listener")["spec"]["replicas"] == 2
    # Two would audit everything twice, even while one takes over.
    assert named("Deployment", "tocsin-checker")["spec"]["strategy"] == {"type": "Recreate"}


def test_everything_is_denied_but_what_is_named() -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in documents("base") if one["kind"] == "NetworkPolicy"}
    default = policies["tocsin"]
    assert default["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in default
    assert [port["port"] for rule in default["egress"] for port in rule["ports"]] == [53, 53, 4222]
    (label,) = yaml.safe_load((KUBERNETES / "base/kustomization.yaml").read_text())["labels"]
    assert label["includeTemplates"] is True, "the policy selects pods by this label"
    assert default["podSelector"]["matchLabels"] == label["pairs"]
    assert "tocsin-gateway" not in str(policies["tocsin-databases"])
    assert all(rule.get("from") for rule in policies["tocsin-internal"]["ingress"])


def test_the_monitor_finds_the_services_under_the_names_that_the_alerts_know() -> None:
    (monitor,) = documents("monitoring")
    (expression,) = monitor["spec"]["selector"]["matchExpressions"]
    services = [one for one in documents("base") if one["kind"] == "Service"]
    assert {one["metadata"]["labels"][expression["key"]] for one in services} == set(expression["values"])
    job = re.search(r'up\{job=~"([^"]+)"\}', (KUBERNETES.parent / "prometheus/alerts.yml").read_text())
    assert job is not None
    assert all(re.fullmatch(job[1], one["metadata"]["name"]) for one in services)
