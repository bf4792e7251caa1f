"""Commands that are forked from the warm process have the state and the end of those that start from the beginning."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import warm

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="commands are forked on Linux only"),
]

PROBE = "tests.integration.process_state"
IMPORTS = "tests.integration.imported_state"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "MODULES", warm.MODULES | {PROBE, IMPORTS})


def run(end: str, *, launcher: bool = False, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", PROBE, str(os.getpid()), end]
    if launcher:
        command = [sys.executable, "-I", "-S", warm.LAUNCHER, str(os.getpid()), *command]
    return subprocess.run(
        command, capture_output=True, text=True, input="typed\n", timeout=60, cwd=ROOT, **options
    )  # fmt: skip


@pytest.mark.parametrize("launcher", [False, True])
@pytest.mark.parametrize("session", [False, True])
def test_a_forked_process_has_the_state_of_any_other(session: bool, launcher: bool, tmp_path: Path) -> None:
    variables = {**os.environ, "EMPTY": "", "TZ": "Asia/Tokyo", "BYTES": "a\udcff b", "TMPDIR": str(tmp_path)}
    variables.pop("PWD", None)
    options: dict[str, Any] = {"start_new_session": session, "env": variables, "umask": 0o027, "launcher": launcher}
    forked = run("0", **options)
    with warm.cold():
        other = run("0", **options)
    assert (forked.returncode, forked.stderr) == (other.returncode, other.stderr)
    found, expected = (json.loads(done.stdout.splitlines()[0]) for done in (forked, other))
    assert found == expected
    assert found["is child"]
    assert forked.stdout.splitlines()[1:] == other.stdout.splitlines()[1:] == ["at exit"]


@pytest.mark.parametrize("end", ["0", "3", "a message", "fail", "interrupt", "kill"])
def test_a_forked_process_ends_as_any_other(end: str) -> None:
    forked = run(end)
    with warm.cold():
        other = run(end)
    assert forked.returncode == other.returncode
    assert forked.stdout.splitlines()[1:] == other.stdout.splitlines()[1:]
    assert forked.stderr.splitlines()[-1] == other.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {
            "PREFECT_API_URL": "http://127.0.0.1:4299/api",
            "PREFECT_LOGGING_LEVEL": "ERROR",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_CONFIGURE_LOGGING": "false",
        },
        {"PREFECT_LOGGING_EXTRA_LOGGERS": "flows", "PREFECT_PROFILE": "local", "MLFLOW_LOGGING_LEVEL": "DEBUG"},
    ],
)
def test_imports_after_the_fork_follow_the_variables(variables: dict[str, str], tmp_path: Path) -> None:
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path), **variables}

    def imported() -> dict[str, Any]:
        command = [sys.executable, "-m", IMPORTS]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    forked = imported()
    with warm.cold():
        assert forked == imported()


@pytest.mark.parametrize("command", [["-m", "mlflow", "--version"], ["-m", "prefect", "--version"]])
def test_the_commands_of_held_packages_run(command: list[str]) -> None:
    def output() -> str:
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return done.stdout

    forked = output()
    with warm.cold():
        assert forked == output() != ""


def test_a_command_with_other_early_variables_is_not_forked() -> None:
    command, variables = [warm.SCRIPT, "version"], dict(os.environ)
    assert warm._installed is not None
    assert warm._installed.takes(command, variables)
    for name in ("PYTHONPATH", "OMP_NUM_THREADS", "LC_ALL"):
        assert not warm._installed.takes(command, {**variables, name: "4"})
    assert not warm._installed.takes([sys.executable, "-c", "pass"], variables)


def test_its_own_warm_process_ends_with_a_killed_command() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", PROBE, str(os.getpid()), "0"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=ROOT
    )
    deadline = time.monotonic() + 30
    while not (children := psutil.Process(process.pid).children()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert children
    assert psutil.wait_procs(children, timeout=30)[1] == []
