"""The slots of a worker in a Slurm job: those of the job's allocation, not of the whole node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from infra.errors import SettingsError
from infra.settings_groups import WorkerSettings
from infra.worker.gpus import VISIBLE


@dataclass(frozen=True)
class Allocation:
    """What Slurm gave a job: its id, as ``41_2`` for a task of an array, CPUs and the number of GPUs."""

    job: str
    cpus: int
    gpus: int


def read_allocation(environment: Mapping[str, str], gpus: int) -> Allocation:
    """Return the allocation of the job whose variables are ``environment``.

    gpus: how many the job asked for.

    Raises:
        SettingsError: this is no job, or it has other GPUs than it asked for.
    """
    if "SLURM_JOB_ID" not in environment:
        raise SettingsError("SLURM_JOB_ID: expected a job of Slurm, found none; submit one: fedbench slurm up")
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    job = environment["SLURM_JOB_ID"] if array is None or task is None else f"{array}_{task}"
    # Slurm sets the first only if the job asked for CPUs.
    cpus = environment.get("SLURM_CPUS_PER_TASK") or environment.get("SLURM_CPUS_ON_NODE") or ""
    if not cpus.isdecimal() or int(cpus) < 1:
        raise SettingsError(f"SLURM_CPUS_PER_TASK: expected the number of the job's CPUs, found {cpus!r}")
    visible = [name for name in environment.get(VISIBLE, "").split(",") if name.strip()] if gpus else []
    if len(visible) != gpus:
        raise SettingsError(
            f"{VISIBLE}: expected the {gpus} GPUs of job {job}, found {environment.get(VISIBLE) or 'none'}; "
            "the cluster's gres.conf must name the GPUs' files"
        )
    return Allocation(job, int(cpus), gpus)


def slot_variables(allocation: Allocation, worker: WorkerSettings) -> dict[str, str]:
    """Return the settings of a worker that has exactly this allocation.

    A GPU has ``worker.slots_per_gpu`` slots, and the CPUs are divided among all slots. Without GPUs there is a slot for
    each ``worker.threads`` CPUs (1).

    Raises:
        SettingsError: ``worker.threads`` is more than the CPUs of the job.
    """
    if worker.threads is not None and worker.threads > allocation.cpus:
        raise SettingsError(
            f"worker.threads: expected at most {allocation.cpus}, the CPUs of job {allocation.job}, found "
            f"{worker.threads}; ask for more: fedbench slurm up --cpus"
        )
    if allocation.gpus:
        threads = worker.threads or max(allocation.cpus // (allocation.gpus * worker.slots_per_gpu), 1)
        return {"FEDBENCH_WORKER__SLOTS": "gpu", "FEDBENCH_WORKER__THREADS": str(threads)}
    threads = worker.threads or 1
    return {
        VISIBLE: "",
        "FEDBENCH_WORKER__SLOTS": "cpu",
        "FEDBENCH_WORKER__THREADS": str(threads),
        "FEDBENCH_SLOTS": str(allocation.cpus // threads),
    }
