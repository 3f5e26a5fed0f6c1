"""deploy/kubernetes before a real API server, in a namespace that enforces `restricted`. Run by `make test-kubernetes`, which builds the servers."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tocsin.stack import process

SERVERS = Path(os.environ["TOCSIN_TEST_KUBERNETES"])
SERVICE_MONITOR = Path(os.environ["TOCSIN_TEST_SERVICE_MONITOR"])
EXAMPLE = Path(__file__).parents[2] / "deploy/kubernetes/example"
LEVELS = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cluster:
    """`kubectl` before the API server, as its administrator."""

    configuration: Path

    def kubectl(self, *arguments: str, body: Object | None = None, expect: int = 0) -> tuple[str, str]:
        """(output, what it said beside that)"""
        done = subprocess.run(
            ["kubectl", "--kubeconfig", str(self.configuration), *arguments],
            input=json.dumps(body) if body else None, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout, done.stderr

    def objects(self, kind: str) -> list[Object]:
        found: list[Object] = json.loads(self.kubectl("-n", "tocsin", "get", kind, "-o", "json")[0])["items"]
        return found


@pytest_asyncio.fixture(scope="session")
async def cluster(scratch: Path) -> AsyncIterator[Cluster]:
    """etcd and kube-apiserver, with ServiceMonitor known, the namespace and its secret made as docs/operations/deploy.md says."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (scratch / "sa.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
    )
    (scratch / "tokens.csv").write_text("secret,admin,admin,system:masters\n")
    client, peer, port = process.free_port(), process.free_port(), process.free_port()
    urls = ("--listen-client-urls", "--advertise-client-urls")
    peers = ("--listen-peer-urls", "--initial-advertise-peer-urls")
    etcd = await process.start(
        *(str(SERVERS / "etcd"), f"--data-dir={scratch}/etcd", f"--initial-cluster=default=http://127.0.0.1:{peer}"),
        *(f"{name}=http://127.0.0.1:{client}" for name in urls), *(f"{name}=http://127.0.0.1:{peer}" for name in peers),
        log=scratch / "etcd.log",
    )  # fmt: skip
    server = await process.start(
        *(str(SERVERS / "kube-apiserver"), f"--etcd-servers=http://127.0.0.1:{client}", "--bind-address=127.0.0.1", f"--secure-port={port}"),
        *(f"--cert-dir={scratch}/certificates", f"--token-auth-file={scratch}/tokens.csv", "--authorization-mode=RBAC"),
        *(f"--service-account-key-file={scratch}/sa.key", f"--service-account-signing-key-file={scratch}/sa.key"),
        *("--service-account-issuer=https://kubernetes.default.svc", "--service-cluster-ip-range=10.0.0.0/24"),
        log=scratch / "apiserver.log",
    )
    try:
        await _until_ready(port, server, scratch / "apiserver.log")
        configuration = scratch / "kubeconfig"
        configuration.write_text(yaml.safe_dump(_kubeconfig(port)))
        made = Cluster(configuration)
        made.kubectl("apply", "--server-side", "-f", str(SERVICE_MONITOR))
        made.kubectl("wait", "--for=condition=established", "--timeout=60s", "crd/servicemonitors.monitoring.coreos.com")
        made.kubectl("create", "namespace", "tocsin")
        made.kubectl("label", "namespace", "tocsin", *(f"{name}={level}" for name, level in LEVELS.items()))
        made.kubectl("-n", "tocsin", "create", "secret", "generic", "tocsin", "--from-literal=database_url=x")
        yield made
    finally:
        await process.stop(server)
        await process.stop(etcd)


async def _until_ready(port: int, server: asyncio.subprocess.Process, log: Path) -> None:
    async with httpx.AsyncClient(verify=_trusting()) as client:
        try:
            async with asyncio.timeout(180):
                while True:
                    assert server.returncode is None, process.tail(log, 30)
                    try:
                        answer = await client.get(f"https://127.0.0.1:{port}/readyz", headers={"Authorization": "Bearer secret"})
                    except httpx.HTTPError:
                        answer = None
                    if answer is not None and answer.status_code == 200:
                        return
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise AssertionError(f"the API server was not ready:\n{process.tail(log, 30)}") from None


def _trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _kubeconfig(port: int) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": f"https://127.0.0.1:{port}", "insecure-skip-tls-verify": True}}],
        "users": [{"name": "admin", "user": {"token": "secret"}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "admin"}}],
    }


@pytest.fixture(scope="session")
def applied(cluster: Cluster) -> Cluster:
    """The example, as an operator applies it; the server has nothing to warn of."""
    output, said = cluster.kubectl("apply", "--server-side", "--validate=strict", "-k", str(EXAMPLE))
    assert said == ""
    assert "deployment.apps/tocsin-gateway serverside-applied" in output
    return cluster


def test_the_server_takes_every_object_and_another_apply_changes_nothing(applied: Cluster) -> None:
    rendered = [one for one in yaml.safe_load_all(applied.kubectl("kustomize", str(EXAMPLE))[0]) if one]
    for one in rendered:
        applied.kubectl("-n", "tocsin", "get", one["kind"], one["metadata"]["name"])
    assert {one["kind"] for one in rendered} >= {"ServiceMonitor", "NetworkPolicy", "HorizontalPodAutoscaler", "PodDisruptionBudget"}
    assert applied.kubectl("diff", "--server-side", "-k", str(EXAMPLE)) == ("", "")


def pods(cluster: Cluster) -> list[Object]:
    """What each Deployment, as the server stores it with its defaults, would have started."""
    templates = {one["metadata"]["name"]: one["spec"]["template"] for one in cluster.objects("deployments")}
    return [{"apiVersion": "v1", "kind": "Pod", "metadata": {**one["metadata"], "name": name}, "spec": one["spec"]} for name, one in templates.items()]


def test_every_pod_is_admitted_where_restricted_is_enforced(applied: Cluster) -> None:
    found = pods(applied)
    assert len(found) == 3
    for pod in found:
        _, said = applied.kubectl("-n", "tocsin", "create", "-f", "-", body=pod)
        assert said == ""
    admitted = applied.objects("pods")
    assert {pod["metadata"]["name"] for pod in admitted} == {pod["metadata"]["name"] for pod in found}
    assert all(volume["name"] in ("secrets", "tmp") for pod in admitted for volume in pod["spec"]["volumes"]), "no token of the service account"


@pytest.mark.parametrize("change", [{"allowPrivilegeEscalation": True}, {"runAsNonRoot": False}, {"capabilities": {"add": ["NET_ADMIN"]}}])
def test_the_server_refuses_a_pod_with_more_rights(applied: Cluster, change: Object) -> None:
    """Or the test above would prove nothing."""
    pod = pods(applied)[0]
    pod["metadata"]["name"] = "more"
    pod["spec"]["containers"][0]["securityContext"] |= change
    _, said = applied.kubectl("-n", "tocsin", "create", "-f", "-", body=pod, expect=1)
    assert "violates PodSecurity" in said


def test_the_server_refuses_a_monitor_with_a_misspelt_field(applied: Cluster) -> None:
    monitor = applied.objects("servicemonitors")[0]
    wrong = {"apiVersion": monitor["apiVersion"], "kind": "ServiceMonitor", "metadata": {"name": "wrong"}, "spec": {**monitor["spec"], "endpoint": []}}
    _, said = applied.kubectl("-n", "tocsin", "create", "--validate=strict", "-f", "-", body=wrong, expect=1)
    assert "endpoint" in said


def test_each_service_selects_the_pods_of_its_own_and_the_monitor_selects_the_services(applied: Cluster) -> None:
    templates = {one["metadata"]["name"]: one["spec"]["template"]["metadata"]["labels"] for one in applied.objects("deployments")}
    for service in applied.objects("services"):
        selector = service["spec"]["selector"].items()
        assert [name for name, labels in templates.items() if selector <= labels.items()] == [service["metadata"]["name"]]
    (chosen,) = applied.objects("servicemonitors")[0]["spec"]["selector"]["matchExpressions"]
    assert sorted(chosen["values"]) == sorted(service["metadata"]["labels"]["app"] for service in applied.objects("services"))
