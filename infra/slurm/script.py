"""The batch script of the worker jobs. It holds no credentials: these are in the environment file that it names."""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path

from infra.errors import SettingsError
from infra.slurm.durations import written

# What a job gets of the environment in which it was submitted. Slurm keeps that, and administrators can read it.
EXPORTED = "HOME,PATH,USER,LANG,LD_LIBRARY_PATH"
# Slurm counts a job's time in minutes, and may send the signal so much earlier.
GRAIN_SECONDS = 60
LEAST_LEAD_SECONDS = 10


@dataclass(frozen=True)
class WorkerJobs:
    """What `up` asks Slurm for: ``workers`` jobs of one worker each.

    gpus, cpus: of each job; cpus None: the partition's default.
    seconds: each job's time. lead: how long before its end turns are handed back. idle: a job without a turn for so
        long ends.
    options: further options of sbatch, such as ``--account=vision``.
    """

    partition: str
    pool: str
    workers: int
    gpus: int
    cpus: int | None
    seconds: int
    lead: int
    idle: int
    options: tuple[str, ...] = ()

    def check(self) -> None:
        """Check what can be checked without Slurm.

        Raises:
            SettingsError: the message names the option.
        """
        if self.lead < LEAST_LEAD_SECONDS:
            raise SettingsError(f"--lead: expected at least {written(LEAST_LEAD_SECONDS)}, found {written(self.lead)}")
        least = self.lead + GRAIN_SECONDS
        if self.seconds < least:
            raise SettingsError(
                f"--time: expected at least {written(least)}: turns are handed back {written(self.lead)} (--lead) "
                f"before the end, and Slurm counts minutes; found {written(self.seconds)}"
            )
        for option in self.options:
            if not option.startswith("--") or len(option.splitlines()) != 1:
                raise SettingsError(f"--sbatch: expected an option of sbatch, as in --account=vision, found {option!r}")


def job_name(home: Path) -> str:
    """Return the name of the jobs of this home, by which they are found again."""
    return f"fedbench-{hashlib.sha256(str(home.absolute()).encode()).hexdigest()[:8]}"


def slurm_folder(home: Path) -> Path:
    return home.absolute() / "slurm"


def environment_path(home: Path) -> Path:
    """Return the file with addresses and credentials of the servers."""
    return slurm_folder(home) / "worker.env"


def log_path(home: Path, job: str) -> Path:
    """Return the log of a job; ``job``: array and task, as ``41_2``."""
    return slurm_folder(home) / "logs" / f"{job}.log"


def batch_script(jobs: WorkerJobs, home: Path, python: str) -> str:
    """Return the script. python: the interpreter, at the same path on every node."""
    gpus = [f"--gres=gpu:{jobs.gpus}"] if jobs.gpus else []
    cpus = [] if jobs.cpus is None else [f"--cpus-per-task={jobs.cpus}"]
    options = [
        f"--job-name={job_name(home)}",
        f"--comment={jobs.pool}",
        f"--partition={jobs.partition}",
        "--nodes=1",
        "--ntasks=1",
        *gpus,
        *cpus,
        f"--time={written(jobs.seconds)}",
        f"--array=1-{jobs.workers}",
        f"--signal=B:USR1@{jobs.lead}",
        "--requeue",
        "--open-mode=append",
        f"--output={log_path(home, '%A_%a')}",
        f"--export={EXPORTED}",
        *jobs.options,
    ]
    file = shlex.quote(str(environment_path(home)))
    command = [python, "-P", "-m", "infra.slurm.job", "--pool", jobs.pool]
    for option, value in (("--gpus", jobs.gpus), ("--lead", jobs.lead), ("--idle", jobs.idle)):
        command += [option, str(value)]
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {_in_script(option)}" for option in options),
        "set -eu",
        "umask 077",
        f"if [ ! -r {file} ]; then",
        f'  echo "error: $(hostname): expected a readable file "{file}": its folder must be shared by all nodes" >&2',
        "  exit 2",
        "fi",
        "# Addresses and credentials of the servers; only you can read the file.",
        f". {file}",
        f"exec {shlex.join(command)}",
    ]
    return "\n".join(lines) + "\n"


def _in_script(option: str) -> str:
    """Return an option in the form that sbatch reads in a script: it knows quotes, and ends a line at a bare #."""
    name, equals, value = option.partition("=")
    plain = value and not set(value) & set(" \t\"'#")
    return option if plain or not equals else f"{name}={_quoted(value)}"


def _quoted(value: str) -> str:
    mark = "'" if '"' in value else '"'
    return f"{mark}{value}{mark}"
