"""Slots of a worker: how settings define them, what is refused, and that no two processes share one."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.errors import SettingsError, SlotRefused
from infra.settings import Settings
from infra.settings_groups import WorkerSettings
from infra.worker.gpus import Gpu
from infra.worker.leases import Lease, Need, Slot, SlotLeases, asked_to_leave, plan_slots, slots_folder

GPU = Gpu(0, "GPU-5a1c7f0e", "NVIDIA A100", 81920)
OTHER = Gpu(1, "GPU-77aa0b1c", "NVIDIA T4", 15360)
QUARTER = Slot("GPU-5a1c7f0e-1", 2, GPU, 0.25)
CPU = Slot("cpu-1", 2)


def planned(gpus: list[Gpu], cores: int, count: int | None = None, **worker: object) -> list[Slot]:
    return plan_slots(Settings(slots=count, worker=WorkerSettings.model_validate(worker)), gpus, cores)


def test_slots_are_gpus_fractions_or_cpu_threads() -> None:
    assert planned([GPU, OTHER], 16) == [Slot("GPU-5a1c7f0e-1", 8, GPU, 1), Slot("GPU-77aa0b1c-1", 8, OTHER, 1)]
    halves = planned([GPU], 16, slots_per_gpu=2, threads=3)
    assert halves == [Slot(f"GPU-5a1c7f0e-{number}", 3, GPU, 0.5) for number in (1, 2)]
    assert planned([GPU], 4, slots="cpu", threads=2) == [Slot("cpu-1", 2), Slot("cpu-2", 2)]
    assert planned([], 4, count=1) == [Slot("cpu-1", 4)]
    assert planned([], 2, count=8)[7] == Slot("cpu-8", 1)


def test_settings_that_the_machine_cannot_meet_are_named() -> None:
    with pytest.raises(SettingsError, match=r"worker\.slots: expected cpu or auto, .* found gpu"):
        planned([], 4, slots="gpu")
    with pytest.raises(SettingsError, match=r"worker\.threads: expected at most 4, .* found 5"):
        planned([], 4, threads=5)


def test_a_run_sees_only_its_slot() -> None:
    assert CPU.environment() == {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2", "FEDBENCH_SLOT": "cpu-1"}
    variables = QUARTER.environment()
    assert variables["CUDA_VISIBLE_DEVICES"] == "GPU-5a1c7f0e"
    assert variables["PYTORCH_CUDA_ALLOC_CONF"] == "per_process_memory_fraction:0.2500"
    assert "PYTORCH_CUDA_ALLOC_CONF" not in Slot("whole", 2, GPU, 1).environment()


@pytest.mark.parametrize(
    ("need", "slot", "met"),
    [
        (Need(), CPU, True),
        (Need(), QUARTER, True),
        (Need(threads=2), CPU, True),
        (Need(threads=3), CPU, False),
        (Need(device="cuda"), CPU, False),
        (Need(device="cpu"), QUARTER, False),
        (Need(gpus=0.25), QUARTER, True),
        (Need(gpus=0.5), QUARTER, False),
        (Need(gpus=0.1), CPU, False),
        (Need(gpu_megabytes=20480), QUARTER, True),
        (Need(gpu_megabytes=20481), QUARTER, False),
    ],
)
def test_a_need_is_met_by_a_slot_that_has_enough(need: Need, slot: Slot, met: bool) -> None:
    assert need.met_by(slot) is met


def test_a_third_of_a_gpu_is_met_by_one_of_three_slots() -> None:
    assert Need(gpus=0.3333).met_by(planned([GPU], 3, slots_per_gpu=3)[0])
    assert Need(gpus=1 / 3).met_by(planned([GPU], 3, slots_per_gpu=3)[2])


def test_a_refusal_names_the_need_and_the_slots(tmp_path: Path) -> None:
    leases = SlotLeases([QUARTER, QUARTER], tmp_path)
    with pytest.raises(SlotRefused) as caught:
        asyncio.run(leases.acquire(Need("cuda", 1, 40000, 4)))
    assert str(caught.value) == (
        "the run needs device cuda, 1 GPU, 40000 MiB of GPU memory, 4 CPU threads; slots of this worker have "
        "2 CPU threads, 0.25 of a GPU (NVIDIA A100, 20480 MiB)"
    )


def test_a_run_goes_to_a_slot_that_has_enough_and_waits_for_it(tmp_path: Path) -> None:
    small, large = Slot("small", 1), Slot("large", 4)

    async def use() -> None:
        leases = SlotLeases([small, large], tmp_path)
        first = await leases.acquire(Need(threads=4))
        assert first.slot == large
        second = asyncio.create_task(leases.acquire(Need(threads=2)))
        assert (await leases.acquire(Need())).slot == small
        assert not second.done()
        first.release()
        assert (await second).slot == large

    asyncio.run(use())


HOLDER = """
import os, sys
print(os.getpid(), flush=True)
sys.stdin.read()
"""


def test_a_lease_lasts_as_long_as_the_child_has_its_file_open(tmp_path: Path) -> None:
    """It lasts even after the process that took it has released it, as when a worker is killed."""

    def child_of(lease: Lease) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", HOLDER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[lease.descriptor],
        )
        assert child.stdout is not None
        assert int(child.stdout.readline()) == child.pid
        return child

    async def use() -> None:
        lease = await SlotLeases([CPU], tmp_path).acquire(Need())
        with child_of(lease) as child:
            lease.release()
            waiting = asyncio.create_task(SlotLeases([CPU], tmp_path).acquire(Need()))
            await asyncio.sleep(0.2)
            assert not waiting.done()
            child.kill()
            child.wait()
            assert (await asyncio.wait_for(waiting, 30)).slot == CPU

    asyncio.run(use())


def test_the_ended_runs_of_a_killed_worker_are_found_once(tmp_path: Path) -> None:
    async def use() -> None:
        leases = SlotLeases([CPU, Slot("cpu-2", 1)], tmp_path)
        lost, kept = await leases.acquire(Need()), await leases.acquire(Need())
        lost.note("run 1")
        kept.note("run 2")
        assert leases.left_behind() == []
        os.close(os.dup(kept.descriptor))  # closing a copy of the descriptor does not free the lock
        lost._lock.release()  # as the kernel does when a process dies: the note stays
        assert leases.left_behind() == ["run 1"]
        assert leases.left_behind() == []
        kept.release()
        assert leases.left_behind() == []

    asyncio.run(use())


def test_only_runs_in_slots_of_a_worker_that_ends_are_asked_to_leave(tmp_path: Path) -> None:
    leases = SlotLeases([CPU, Slot("cpu-2", 2)], slots_folder(tmp_path))

    async def take() -> Lease:
        return await leases.acquire(Need())

    lease = asyncio.run(take())
    first, second = ({"FEDBENCH_SLOT": name} for name in ("cpu-1", "cpu-2"))
    assert not asked_to_leave(tmp_path, first)
    leases.ask_to_leave()
    assert asked_to_leave(tmp_path, first)
    assert not asked_to_leave(tmp_path, second)
    assert not asked_to_leave(tmp_path, {})  # not in a slot
    lease.release()
    assert not asked_to_leave(tmp_path, first)


def test_a_request_to_leave_of_a_killed_worker_does_not_reach_the_next_run(tmp_path: Path) -> None:
    killed = SlotLeases([CPU], slots_folder(tmp_path))

    async def take(leases: SlotLeases) -> Lease:
        return await leases.acquire(Need())

    old = asyncio.run(take(killed))
    killed.ask_to_leave()
    old._lock.release()  # as the kernel does
    asyncio.run(take(SlotLeases([CPU], slots_folder(tmp_path))))
    assert not asked_to_leave(tmp_path, {"FEDBENCH_SLOT": "cpu-1"})
