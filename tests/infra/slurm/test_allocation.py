"""The slots of a job: those of its allocation."""

from __future__ import annotations

import pytest

from infra.errors import SettingsError
from infra.settings import Settings
from infra.settings_groups import WorkerSettings
from infra.slurm.allocation import Allocation, read_allocation, slot_variables
from infra.worker.gpus import Gpu
from infra.worker.leases import plan_slots

JOB = {"SLURM_JOB_ID": "43", "SLURM_CPUS_ON_NODE": "16"}
TASK = {**JOB, "SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "2"}
GPUS = [Gpu(number, f"GPU-{number}", "NVIDIA A100", 81920) for number in (0, 1)]


def test_cpus_and_gpus_are_those_that_slurm_gave() -> None:
    assert read_allocation(JOB, 0) == Allocation("43", 16, 0)
    assert read_allocation({**TASK, "SLURM_CPUS_PER_TASK": "8"}, 0) == Allocation("41_2", 8, 0)
    assert read_allocation({**TASK, "CUDA_VISIBLE_DEVICES": "2,3"}, 2) == Allocation("41_2", 16, 2)
    # Without a request, a job may see GPUs that belong to others.
    assert read_allocation({**TASK, "CUDA_VISIBLE_DEVICES": "0,1"}, 0).gpus == 0


@pytest.mark.parametrize(
    ("variables", "gpus", "message"),
    [
        ({}, 0, "SLURM_JOB_ID: expected a job of Slurm, found none; submit one: fedbench slurm up"),
        ({"SLURM_JOB_ID": "43"}, 0, "SLURM_CPUS_PER_TASK: expected the number of the job's CPUs, found ''"),
        (TASK, 1, "CUDA_VISIBLE_DEVICES: expected the 1 GPUs of job 41_2, found none; the cluster's gres.conf"),
        ({**TASK, "CUDA_VISIBLE_DEVICES": "0"}, 2, "CUDA_VISIBLE_DEVICES: expected the 2 GPUs of job 41_2, found 0"),
    ],
)
def test_what_is_missing_is_named(variables: dict[str, str], gpus: int, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_allocation(variables, gpus)


def slots_by(variables: dict[str, str], gpus: list[Gpu], monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """Return threads and share of a GPU of each slot that a worker with these variables has on a node of 64 cores."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return [(slot.threads, slot.share) for slot in plan_slots(Settings(), gpus, 64)]


def test_a_gpu_is_a_slot_and_the_cpus_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = slot_variables(Allocation("41_1", 16, 2), WorkerSettings())
    assert slots_by(variables, GPUS, monkeypatch) == [(8, 1), (8, 1)]


def test_parts_of_a_gpu_divide_the_cpus_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDBENCH_WORKER__SLOTS_PER_GPU", "2")
    variables = slot_variables(Allocation("41_1", 3, 1), Settings().worker)
    assert slots_by(variables, GPUS[:1], monkeypatch) == [(1, 0.5), (1, 0.5)]


def test_without_gpus_the_cpus_are_slots_even_where_the_node_has_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = slot_variables(Allocation("41_1", 3, 0), WorkerSettings())
    assert variables["CUDA_VISIBLE_DEVICES"] == ""
    assert slots_by(variables, GPUS, monkeypatch) == [(1, 0)] * 3


def test_threads_of_the_settings_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = slot_variables(Allocation("41_1", 8, 0), WorkerSettings(threads=3))
    assert slots_by(variables, [], monkeypatch) == [(3, 0), (3, 0)]
    with pytest.raises(SettingsError, match=r"worker\.threads: expected at most 2, the CPUs of job 41_1, found 3"):
        slot_variables(Allocation("41_1", 2, 0), WorkerSettings(threads=3))
