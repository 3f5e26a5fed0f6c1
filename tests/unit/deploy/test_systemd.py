"""deploy/systemd: systemd itself takes the units, and they ask for settings that there are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tocsin.duration import parse_duration
from tocsin.settings import Settings

UNITS = Path(__file__).parents[3] / "deploy/systemd"
SERVICES = ("listener", "gateway", "checker")
# As systemd rates it: 0 is all shut, 10 all open; below 2 it says OK.
MOST_EXPOSED = 1.5


def lines(service: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", (UNITS / f"tocsin-{service}.service").read_text(), re.MULTILINE)


@pytest.mark.systemd
def test_systemd_takes_the_units_without_a_word(tmp_path: Path) -> None:
    for unit in UNITS.glob("tocsin*.*"):
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/tocsin/bin/tocsin", sys.executable))
    units = sorted(str(path) for path in tmp_path.iterdir() if path.suffix in (".service", ".target"))
    assert len(units) == len(SERVICES) + 1
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if "tocsin" in line]
    assert (done.returncode, said) == (0, []), done.stderr


@pytest.mark.systemd
@pytest.mark.parametrize("service", SERVICES)
def test_systemd_finds_little_exposed(service: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(UNITS / f"tocsin-{service}.service")], capture_output=True, text=True, check=False
    )
    rated = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert rated is not None, done.stdout + done.stderr
    assert float(rated[1]) <= MOST_EXPOSED, done.stdout


@pytest.mark.parametrize("service", SERVICES)
def test_each_secret_that_is_loaded_is_the_file_of_a_setting(service: str) -> None:
    loaded = {name for name, _, path in (line.partition(":") for line in lines(service, "LoadCredential")) if path == f"/etc/tocsin/secrets/{name}"}
    assert loaded
    assert set(lines(service, "Environment")) == {f"TOCSIN_{name.upper()}_FILE=%d/{name}" for name in loaded}
    assert all(f"{name}_file" in Settings.model_fields for name in loaded)
    assert ("database_url" in loaded) == (service != "gateway"), "the gateway needs no database"


def test_every_setting_of_the_example_exists() -> None:
    names = re.findall(r"^(?:# )?TOCSIN_(\w+)=", (UNITS / "tocsin.env").read_text(), re.MULTILINE)
    assert names
    assert all(name.lower() in Settings.model_fields for name in names)


def test_a_gateway_has_the_time_to_close_its_clients() -> None:
    (stop,) = lines("gateway", "TimeoutStopSec")
    drain = Settings.model_fields["gateway_drain"].default
    assert parse_duration(f"{stop}s") > 2 * drain
