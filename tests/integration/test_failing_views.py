"""A run trains even if its MLflow server fails and its plots cannot be drawn. ``fedbench report`` makes both later."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.failing_server import failing_server
from tests.integration.conftest import FinishedRun
from tests.integration.homes import PLOTS, Home, assert_tracked_once, digests, tiny

pytestmark = pytest.mark.integration


def test_failed_tracking_and_plots_are_warnings_and_can_be_made_later(
    undisturbed: FinishedRun, shared_home: Home, tmp_path: Path
) -> None:
    home, name = shared_home, "unseen"
    spec, folder = home.spec_file(tiny(max_rounds=1), name), home.path / "runs" / name
    # The user's matplotlib settings require LaTeX, which is not installed.
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    with failing_server() as server:
        failing = (
            home.environment()
            | PLOTS
            | {
                "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"),
                "PATH": str(tmp_path),
                "FEDBENCH_MLFLOW_TRACKING_URI": server,
                "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
            }
        )
        result = home.run("run", spec, "--name", name, "--slots", 2, environment=failing)
        assert result.returncode == 0, result.stdout
        warnings = [line.partition("warning: ")[2] for line in result.stdout.splitlines() if "warning: " in line]
        failed = json.loads((folder / "report.json").read_text())["failed"]
        assert {"MLflow's run", "rounds.png", "class-by-device.png", "client-losses.png"} <= set(failed)
        # These come at the end, after the warnings of the rounds.
        assert warnings[-1 - len(failed) : -1] == [f"{what} failed: {reason}" for what, reason in failed.items()]
        assert warnings[-1].endswith(f"fedbench report {name} --home {home.path} draws and tracks it again")
        assert "500 error" in failed["MLflow's run"]
        assert not (folder / "rounds.png").exists()
        again = home.run("report", name, "-q", environment=failing)
        assert again.returncode == 1, again.stdout
        assert [line.removeprefix("warning: ") for line in again.stdout.splitlines() if line.startswith("warning: ")]
    # The committed weights have the bits of the undisturbed run.
    records = home.records(name)
    assert digests(records) == digests(undisturbed.records)[:2]
    result = home.run("report", name)
    assert result.returncode == 0, result.stdout
    assert "warning" not in result.stdout
    assert "request_update" not in result.stdout
    assert f"model: models:/{name}@best" in result.stdout
    assert home.records(name) == records
    assert json.loads((folder / "report.json").read_text())["failed"] == {}
    for file in ("rounds.png", "class-by-device.png", "client-losses.png", "sheet.png", "errors.png"):
        assert (folder / file).read_bytes().startswith(b"\x89PNG")
    assert_tracked_once(home, name, "FINISHED", records)


def test_report_needs_a_finished_run(shared_home: Home) -> None:
    result = shared_home.run("report", "nobody")
    assert result.returncode == 2
    assert "nobody: no such federation" in result.stdout
