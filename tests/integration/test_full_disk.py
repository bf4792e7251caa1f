"""A run whose disk fills, on a real file system: one message, no restarts, and the same bits once there is room."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.servers.prefect_server import PrefectService
from tests.integration.conftest import FinishedRun
from tests.integration.homes import Home, digests

pytestmark = pytest.mark.integration

# Enough for the drawn images and for Prefect's and MLflow's databases, too little for a model of 35 MB.
FULL_MEGABYTES = 30


@pytest.fixture
def small_home(tmp_path: Path) -> Iterator[Home]:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={FULL_MEGABYTES}m", "tmpfs", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode != 0:
        pytest.skip(f"only root with CAP_SYS_ADMIN may mount: {mounted.stderr.strip()}")
    try:
        yield Home(tmp_path / "home")
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_full_disk_stops_a_run_which_resumes_when_there_is_room(
    small_home: Home, undisturbed: FinishedRun, shared_home: Home
) -> None:
    # Its flow runs are in the shared home's Prefect server, so it needs a name of its own.
    home, name = small_home, "filled"
    spec = home.path.parent / "tiny.yaml"
    spec.write_bytes(undisturbed.spec.read_bytes())
    prefect = PrefectService(shared_home.path)
    prefect.ensure()  # this process keeps it up
    environment = home.environment() | {
        "FEDBENCH_MIN_FREE_MEGABYTES": "0",
        "FEDBENCH_PREFECT_API_URL": prefect.address,
        "PREFECT_API_AUTH_STRING": prefect.auth,
    }
    command = ("run", spec, "--name", name, "--slots", 2, "--max-rounds", 1)
    stopped = home.run(*command, environment=environment)
    assert stopped.returncode == 1, stopped.stdout
    assert "restart" not in stopped.stdout
    assert "Traceback" not in stopped.stdout
    (message,) = [line for line in stopped.stdout.splitlines() if "no space left" in line]
    assert f"no space left under {home.path} (" in message
    assert f"make room, then `fedbench resume {name} --home {home.path}`" in message

    subprocess.run(["mount", "-o", "remount,size=2g", str(home.path.parent)], check=True)
    resumed = home.run(*command, environment=environment)
    assert resumed.returncode == 0, resumed.stdout
    assert digests(home.records(name)) == digests(undisturbed.records[:2])
