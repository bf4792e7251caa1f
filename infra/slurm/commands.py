"""Slurm's commands: submit, list and cancel the jobs of this user, and describe a partition."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from infra.errors import SettingsError, SlurmFailed
from infra.slurm.durations import printed_limit

PROGRAMS = ("sbatch", "squeue", "sinfo", "scancel")
TIMEOUT_SECONDS = 120.0
# Variables of sbatch go before the lines of a script. These options are the script's own.
SCRIPT_VARIABLES = (
    "SBATCH_ARRAY_INX",
    "SBATCH_EXPORT",
    "SBATCH_GRES",
    "SBATCH_JOB_NAME",
    "SBATCH_NO_REQUEUE",
    "SBATCH_OPEN_MODE",
    "SBATCH_OUTPUT",
    "SBATCH_PARTITION",
    "SBATCH_SIGNAL",
    "SBATCH_TIMELIMIT",
)

_NODE_FORMAT = "%n|%o|%l|%G"
_JOB_FORMAT = "%i|%P|%k|%T|%M|%l|%N|%r"
# What each of Slurm's commands prints where neither a file nor DNS names a cluster.
_NO_CLUSTER = "Could not establish a configuration source"
# States of jobs that wait, run, or are ending.
OPEN_STATES = frozenset(
    {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "STAGE_OUT", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING"}
    | {"REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
)


@dataclass(frozen=True)
class Node:
    """A node of a partition: its host name, its address, and whether it has GPUs for jobs to request."""

    host: str
    address: str
    has_gpus: bool


@dataclass(frozen=True)
class Partition:
    """A partition. seconds: the longest time of a job; None: no limit."""

    name: str
    seconds: int | None
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Job:
    """A job, as squeue lists it. node: empty while it waits. elapsed, limit, reason: as Slurm prints them."""

    id: str
    partition: str
    pool: str
    state: str
    elapsed: str
    limit: str
    node: str
    reason: str

    @property
    def is_open(self) -> bool:
        return self.state in OPEN_STATES


def require_programs() -> None:
    """Check that Slurm's commands are there.

    Raises:
        SettingsError: one is not; the message names it.
    """
    for name in PROGRAMS:
        if shutil.which(name) is None:
            raise SettingsError(f"{name}: not found on PATH; expected a machine that submits jobs to a Slurm cluster")


def read_partition(name: str) -> Partition:
    """Return the partition.

    Raises:
        SettingsError: there is none of this name; the message lists those that there are.
        SlurmFailed: sinfo fails.
    """
    nodes = parse_nodes(_run(["sinfo", "--noheader", "--Node", f"--partition={name}", f"--format={_NODE_FORMAT}"]))
    if not nodes:
        there = sorted(set(_run(["sinfo", "--noheader", "--format=%R"]).split()))
        raise SettingsError(
            f"--partition: expected one of this cluster's partitions with nodes ({', '.join(there) or 'none'}), "
            f"found {name}"
        )
    return Partition(name, nodes[0][1], tuple(node for node, _ in nodes))


def parse_nodes(text: str) -> list[tuple[Node, int | None]]:
    """Return each node that sinfo printed, with its partition's longest time in seconds.

    Raises:
        SlurmFailed: a line has another form.
    """
    found = []
    for line in text.splitlines():
        host, address, limit, resources = _fields(line, 4, "sinfo")
        has_gpus = any(part.strip().partition(":")[0] == "gpu" for part in resources.split(","))
        found.append((Node(host, address, has_gpus), printed_limit(limit)))
    return found


def submit(script: str) -> str:
    """Submit the batch script. Return the id of its job, which is that of the array.

    Raises:
        SlurmFailed: sbatch refuses; the message has its reason.
    """
    environment = {name: value for name, value in os.environ.items() if name not in SCRIPT_VARIABLES}
    return _run(["sbatch", "--parsable"], script, environment).strip().partition(";")[0]


def list_jobs(name: str) -> list[Job]:
    """Return this user's jobs with this name: one for each worker, those that ended minutes ago included.

    Raises:
        SlurmFailed: squeue fails.
    """
    options = ["--array", "--states=all", f"--user={_user()}", f"--name={name}", "--sort=i"]
    return parse_jobs(_run(["squeue", "--noheader", *options, f"--format={_JOB_FORMAT}"]))


def parse_jobs(text: str) -> list[Job]:
    """Return the jobs that squeue printed.

    Raises:
        SlurmFailed: a line has another form.
    """
    return [Job(*_fields(line, 8, "squeue")) for line in text.splitlines() if line.strip()]


def cancel_jobs(name: str) -> None:
    """Cancel this user's jobs with this name.

    Raises:
        SlurmFailed: scancel fails.
    """
    _run(["scancel", f"--user={_user()}", f"--name={name}"])


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _fields(line: str, count: int, program: str) -> list[str]:
    """Return the fields of a line. The last one may have bars."""
    fields = [field.strip() for field in line.strip().split("|", count - 1)]
    if len(fields) != count:
        raise SlurmFailed(f"{program}: expected lines of {count} fields with | between them, found {line!r}")
    return fields


def _run(command: Sequence[str], text: str | None = None, environment: dict[str, str] | None = None) -> str:
    """Run the command with ``text`` as its input. Return its output.

    Raises:
        SettingsError: this machine belongs to no cluster.
        SlurmFailed: the command fails; the message has its reason.
    """
    try:
        done = subprocess.run(
            command, input=text or "", env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise SlurmFailed(f"{command[0]}: no answer within {TIMEOUT_SECONDS:.0f} s") from None
    except OSError as error:
        raise SlurmFailed(f"{command[0]}: cannot be run: {error.strerror}") from None
    if done.returncode != 0:
        if _NO_CLUSTER in done.stderr:
            raise SettingsError(
                f"{command[0]}: this machine has no Slurm configuration (slurm.conf, or a record in DNS); expected a "
                "machine that submits jobs to a Slurm cluster"
            )
        lines = [line.removeprefix(f"{command[0]}: ").removeprefix("error: ") for line in done.stderr.splitlines()]
        raise SlurmFailed(f"{command[0]}: {'; '.join(filter(None, lines)) or f'exit code {done.returncode}'}")
    return done.stdout
