"""A real Kubernetes control plane without a node: `make test-kubernetes` builds kube-apiserver and etcd from their Go modules, once, into .matrix/.

It needs Go, kubectl and ten minutes the first time. What is proven: the schema, the defaults and the admission of what deploy/kubernetes holds.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.support.fetched import ROOM, ROOT, NotHereError

KUBERNETES: Final = "1.36.3"
OPERATOR: Final = "v0.85.0"
FOLDER: Final = ROOM / f"kubernetes-{KUBERNETES}"
IMPORTS: Final = ("go.etcd.io/etcd/server/v3", "k8s.io/kubernetes/cmd/kube-apiserver")


def build() -> Path:
    """The folder with `etcd` and `kube-apiserver`. Raises NotHereError."""
    done = FOLDER / "bin"
    if not done.exists():
        if shutil.which("go") is None:
            raise NotHereError("no Go")
        module = FOLDER.with_name(f"{FOLDER.name}.unfinished")
        module.mkdir(parents=True, exist_ok=True)
        (module / "go.mod").write_text(_module())
        (module / "tools.go").write_text("//go:build tools\n\npackage cluster\n\nimport (\n" + "".join(f'\t_ "{name}"\n' for name in IMPORTS) + ")\n")
        version = f"-X k8s.io/component-base/version.gitVersion=v{KUBERNETES}"
        for command in (
            ("go", "mod", "tidy"),
            ("go", "build", "-o", "built/etcd", IMPORTS[0]),
            ("go", "build", "-ldflags", version, "-o", "built/kube-apiserver", IMPORTS[1]),
        ):
            print(*command, flush=True)
            if subprocess.run(command, cwd=module, check=False).returncode != 0:
                raise NotHereError(f"{' '.join(command)} failed")
        FOLDER.mkdir(exist_ok=True)
        (module / "built").rename(done)
        shutil.rmtree(module)
    return done


def _module() -> str:
    """Kubernetes' own go.mod replaces its parts by folders of its repository; here they are those published with the same release."""
    text = (_downloaded("k8s.io/kubernetes", f"v{KUBERNETES}") / "go.mod").read_text()
    parts = sorted(set(re.findall(r"^\s*(k8s\.io/[\w-]+) v0\.0\.0(?:\s|$)", text, re.MULTILINE)))
    replaced = "".join(f"\t{part} => {part} v0.{KUBERNETES.partition('.')[2]}\n" for part in parts)
    language = re.search(r"^go .*$", text, re.MULTILINE)
    assert language is not None
    return f"module cluster\n\n{language[0]}\n\nrequire k8s.io/kubernetes v{KUBERNETES}\n\nreplace (\n{replaced})\n"


def service_monitor() -> Path:
    """The definition of the Prometheus operator's ServiceMonitor. Raises NotHereError."""
    return (
        _downloaded("github.com/prometheus-operator/prometheus-operator", OPERATOR)
        / "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml"
    )


def _downloaded(module: str, version: str) -> Path:
    done = subprocess.run(["go", "mod", "download", "-json", f"{module}@{version}"], check=False, capture_output=True, text=True, cwd="/")
    if done.returncode != 0:
        raise NotHereError(f"no Go module {module} {version}")
    return Path(json.loads(done.stdout)["Dir"])


def main(arguments: list[str]) -> int:
    try:
        if shutil.which("kubectl") is None:
            raise NotHereError("no kubectl")
        environment = os.environ | {"TOCSIN_TEST_KUBERNETES": str(build()), "TOCSIN_TEST_SERVICE_MONITOR": str(service_monitor())}
    except NotHereError as missing:
        print(f"not run: {missing}")
        return int("--strict" in arguments)
    command = [sys.executable, "-m", "pytest", "-q", "tests/matrix/check_kubernetes.py"]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
