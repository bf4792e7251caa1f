"""The program of a Slurm job: a worker in the slots of the job's allocation, from the job's start to its end.

    python -P -m infra.slurm.job --pool gpu --gpus 1 --lead 300 --idle 600

It starts ``prefect worker start`` in a home of the job's own, and ends it

* on SIGUSR1, which Slurm sends ``lead`` seconds ahead of the job's end. The worker takes no new turn. The turn at work
  may finish, or is handed back. Then the job is queued again (``scontrol requeue``) if it had a turn within the last
  ``idle`` seconds;
* when no turn came for ``idle`` seconds;
* on SIGTERM (``scancel``, preemption, the job's end), which Slurm sends to the worker and its runs too. They hand their
  turns back themselves.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from infra.errors import InfraError
from infra.processes.launch import launcher
from infra.settings import load_settings
from infra.slurm.allocation import Allocation, read_allocation, slot_variables
from infra.worker.leases import slots_folder

LOOK_SECONDS = 1.0
QUERY_SECONDS = 5  # between two looks for runs, in case an event was lost
# How long the worker may take after a SIGTERM of Slurm's, which kills all processes 30 s later (KillWait's default).
END_SECONDS = 25.0
REQUEUE_SECONDS = 60.0


def drain_seconds(lead: float) -> float:
    """Return how long turns may go on after the signal. The rest of ``lead`` is for handing back and queueing again."""
    return max(lead - 60.0, lead / 2)


class WorkerJob:
    """A job's worker, when it ends, and whether the job is queued again.

    lead, idle: seconds; see the module. home: the job's own.
    ends: whether the worker was asked to end, by this program or by Slurm.
    """

    def __init__(self, allocation: Allocation, home: Path, *, lead: float, idle: float) -> None:
        self.allocation, self.home, self.lead, self.idle = allocation, home, lead, idle
        self.ends = False
        self._signals: set[int] = set()
        self._wake = threading.Event()

    def receive(self, number: int, frame: object = None) -> None:
        """Note a signal."""
        self._signals.add(number)
        self._wake.set()

    def watch(self, worker: subprocess.Popen[bytes]) -> bool:
        """Wait for the end of ``worker``, and bring it about. Return whether the job is to be queued again."""
        began, last_turn = time.monotonic(), -math.inf
        terminated = 0.0
        while worker.poll() is None:
            self._wake.wait(LOOK_SECONDS)
            self._wake.clear()
            now = time.monotonic()
            if self.is_busy():
                last_turn = now
            if signal.SIGTERM in self._signals:
                # The worker has got the signal too. A second one would kill it before its turns are handed back.
                self.ends, terminated = True, terminated or now
                if now - terminated > END_SECONDS:
                    worker.terminate()
            elif self.ends:
                continue
            elif signal.SIGUSR1 in self._signals:
                self.say(f"its time ends in {self.lead:g} s: no new turn is taken")
                self.ends = True
                worker.terminate()
            elif now - max(began, last_turn) > self.idle:
                self.say(f"no turn for {self.idle:g} s: the worker ends")
                self.ends = True
                worker.terminate()
        # A job that had no turn at all is not queued again, even if its time is shorter than `idle`.
        recently = time.monotonic() - last_turn <= self.idle
        return signal.SIGUSR1 in self._signals and signal.SIGTERM not in self._signals and recently

    def is_busy(self) -> bool:
        """Return whether a run has a slot of this job."""
        return any(slots_folder(self.home).glob("*.run"))

    def requeue(self) -> int:
        """Queue the job again, and wait for Slurm to end it. Return this program's exit code."""
        command = ["scontrol", "requeue", os.environ["SLURM_JOB_ID"]]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=REQUEUE_SECONDS)
            failure = done.stderr.strip() or f"exit code {done.returncode}" if done.returncode else None
        except (OSError, subprocess.TimeoutExpired) as error:
            failure = str(error)
        if failure is not None:
            self.say(f"it could not be queued again: {failure}; submit new jobs: fedbench slurm up")
            return 1
        self.say("queued again, because it had turns until now")
        deadline = time.monotonic() + REQUEUE_SECONDS
        while signal.SIGTERM not in self._signals and time.monotonic() < deadline:
            self._wake.wait(LOOK_SECONDS)
            self._wake.clear()
        return 0

    def say(self, line: str) -> None:
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} job {self.allocation.job}: {line}", flush=True)


def worker_environment(
    environment: Mapping[str, str], slots: Mapping[str, str], home: Path, lead: float
) -> dict[str, str]:
    """Return the worker's variables: those of the job, its slots, and a home of its own."""
    return {
        **environment,
        **slots,
        "FEDBENCH_HOME": str(home),
        "FEDBENCH_WORKER__DRAIN_SECONDS": str(drain_seconds(lead)),
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_PROFILES_PATH": str(home / "prefect" / "profiles.toml"),
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": str(QUERY_SECONDS),
        "DO_NOT_TRACK": "1",
        "NO_COLOR": "1",
    }


def start_worker(pool: str, name: str, folder: Path, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the worker. The kernel kills it if this process dies."""
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "fedbench-gpu"]
    return subprocess.Popen(
        [*launcher(), *command, "--name", name], env=dict(variables), cwd=folder, stdin=subprocess.DEVNULL
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="infra.slurm.job")
    parser.add_argument("--pool", required=True)
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--lead", type=float, required=True)
    parser.add_argument("--idle", type=float, required=True)
    arguments = parser.parse_args()
    try:
        allocation = read_allocation(os.environ, arguments.gpus)
        slots = slot_variables(allocation, load_settings().worker)
    except InfraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # A folder of this node's own: locks and caches need no shared file system, and no other job has its slots.
    home = Path(tempfile.mkdtemp(prefix=f"fedbench-{allocation.job}-"))
    job = WorkerJob(allocation, home, lead=arguments.lead, idle=arguments.idle)
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, job.receive)
    try:
        job.say(f"{allocation.cpus} CPUs, {allocation.gpus} GPUs; work pool {arguments.pool}")
        variables = worker_environment(os.environ, slots, home, arguments.lead)
        worker = start_worker(arguments.pool, f"slurm-{allocation.job}", home, variables)
        again = job.watch(worker)
        job.say(f"its worker has ended with exit code {worker.returncode}")
    finally:
        shutil.rmtree(home, ignore_errors=True)
    if again:
        return job.requeue()
    # A worker that was asked to end before it had begun ends by the signal, which is no failure.
    return 0 if job.ends else abs(worker.returncode)


if __name__ == "__main__":
    sys.exit(main())
