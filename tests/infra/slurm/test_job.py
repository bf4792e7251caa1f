"""When a job ends its worker, and when it is queued again. Programs that behave as a worker does stand in for it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from infra.slurm.allocation import Allocation
from infra.slurm.job import WorkerJob, drain_seconds, worker_environment
from tests.waiting import eventually

# Ends at SIGTERM with code 0, and writes first that it has begun, then how it ended.
WORKER = """
import pathlib, signal, sys, time
state = pathlib.Path(sys.argv[1])
def end(number, frame):
    state.write_text("terminated")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
state.write_text("started")
while True:
    time.sleep(0.02)
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def begin(state: Path) -> subprocess.Popen[bytes]:
    worker = subprocess.Popen([sys.executable, "-c", WORKER, str(state)])
    assert eventually(lambda: state.exists() and state.read_text() == "started")
    return worker


def job_in(home: Path, *, idle: float) -> WorkerJob:
    return WorkerJob(Allocation("41_2", 2, 0), home, lead=300.0, idle=idle)


def hold_slot(home: Path) -> Path:
    """Note a run in a slot, as the worker does."""
    note = home / "slots" / "cpu-1.run"
    note.parent.mkdir()
    note.write_text("3b9c")
    return note


def test_ahead_of_its_end_the_worker_is_terminated_and_the_job_queued_again(tmp_path: Path, state: Path) -> None:
    job, worker = job_in(tmp_path, idle=1000.0), begin(state)
    hold_slot(tmp_path)
    threading.Timer(0.2, job.receive, [signal.SIGUSR1]).start()
    assert job.watch(worker)
    assert (state.read_text(), worker.returncode) == ("terminated", 0)


def test_a_job_that_had_no_turn_is_not_queued_again_though_its_time_is_shorter(tmp_path: Path, state: Path) -> None:
    job, worker = job_in(tmp_path, idle=1000.0), begin(state)
    job.receive(signal.SIGUSR1)
    assert not job.watch(worker)
    assert state.read_text() == "terminated"


def test_a_job_without_a_turn_ends_and_is_not_queued_again(tmp_path: Path, state: Path) -> None:
    job, worker = job_in(tmp_path, idle=0.3), begin(state)
    assert not job.watch(worker)
    assert (state.read_text(), job.ends) == ("terminated", True)


def test_a_job_with_a_run_in_a_slot_does_not_end_as_idle(tmp_path: Path, state: Path) -> None:
    job, worker = job_in(tmp_path, idle=0.3), begin(state)
    note = hold_slot(tmp_path)
    watching = threading.Thread(target=job.watch, args=(worker,))
    watching.start()
    watching.join(3.0)
    assert watching.is_alive()
    assert state.read_text() == "started"
    note.unlink()
    watching.join(60.0)
    assert not watching.is_alive()
    assert state.read_text() == "terminated"


def test_a_cancelled_job_leaves_the_signal_to_slurm_and_is_not_queued_again(tmp_path: Path, state: Path) -> None:
    """Slurm sends SIGTERM to all processes of a job. The worker would die of a second one."""
    job, worker = job_in(tmp_path, idle=1000.0), begin(state)
    hold_slot(tmp_path)
    job.receive(signal.SIGUSR1)
    job.receive(signal.SIGTERM)
    watching = threading.Thread(target=job.watch, args=(worker,))
    watching.start()
    watching.join(2.5)
    assert watching.is_alive()
    assert state.read_text() == "started"
    worker.terminate()  # as Slurm does
    watching.join(60.0)
    assert not job.watch(worker)


def test_a_worker_that_ends_by_itself_ends_the_job(tmp_path: Path) -> None:
    job, worker = job_in(tmp_path, idle=1000.0), subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    assert not job.watch(worker)
    assert (worker.returncode, job.ends) == (3, False)


def test_the_worker_has_a_home_of_the_jobs_own_and_no_server_of_prefects(tmp_path: Path) -> None:
    given = {
        "FEDBENCH_HOME": "/home/ann/.fedbench",
        "PREFECT_HOME": "/home/ann/.prefect",
        "PREFECT_API_URL": "http://a",
    }
    variables = worker_environment(given, {"FEDBENCH_SLOTS": "2"}, tmp_path, 300.0)
    assert variables["FEDBENCH_HOME"] == str(tmp_path)
    assert variables["PREFECT_HOME"] == str(tmp_path / "prefect")
    assert (variables["PREFECT_API_URL"], variables["FEDBENCH_SLOTS"]) == ("http://a", "2")
    assert variables["FEDBENCH_WORKER__DRAIN_SECONDS"] == "240.0"


def test_turns_end_early_enough_to_be_handed_back() -> None:
    assert [drain_seconds(lead) for lead in (300.0, 120.0, 60.0, 10.0)] == [240.0, 60.0, 30.0, 5.0]
