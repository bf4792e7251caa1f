"""Slots of a worker, and their leases: never two runs in a slot, also after a kill.

A slot is a GPU, a fraction of one, or CPU threads. Its lease is an OS lock on ``<home>/slots/<slot>.lock``, whose
open file travels to the child that runs in the slot: the kernel frees it when the last process that has it is gone,
in whatever way, and not before. So a worker that was killed and started anew, or a second one of the same home, waits
for what still runs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infra.errors import SettingsError, SlotRefused
from infra.files.lock import FileLock
from infra.settings import Settings
from infra.worker.gpus import VISIBLE, Gpu

# A slot of another worker is freed without our hearing of it.
ASK_AGAIN_SECONDS = 0.5


@dataclass(frozen=True)
class Slot:
    """What one run gets. ``share`` is the part of ``gpu`` that is its own; a slot without GPU has 0."""

    name: str
    threads: int
    gpu: Gpu | None = None
    share: float = 0.0

    @property
    def gpu_megabytes(self) -> int:
        return int(self.gpu.megabytes * self.share) if self.gpu is not None else 0

    def environment(self) -> dict[str, str]:
        """Variables of a run in this slot. torch, imported before, gets its threads by a call besides."""
        variables = {
            VISIBLE: self.gpu.uuid if self.gpu is not None else "",
            "OMP_NUM_THREADS": str(self.threads),
            "FEDBENCH_SLOT": self.name,
        }
        if self.gpu is not None and self.share < 1:
            # Read when the allocator starts; the call that sets it would start CUDA in runs that need none.
            variables["PYTORCH_CUDA_ALLOC_CONF"] = f"per_process_memory_fraction:{self.share:.4f}"
        return variables

    def __str__(self) -> str:
        threads = f"{self.threads} CPU thread{'s' if self.threads > 1 else ''}"
        if self.gpu is None:
            return f"{threads}, no GPU"
        part = "one GPU" if self.share == 1 else f"{self.share:g} of a GPU"
        return f"{threads}, {part} ({self.gpu.name}, {self.gpu_megabytes} MiB)"


@dataclass(frozen=True)
class Need:
    """What a run asks of its slot; zeros ask for nothing in particular."""

    device: Literal["any", "cpu", "cuda"] = "any"
    gpus: float = 0.0
    gpu_megabytes: int = 0
    threads: int = 0

    def met_by(self, slot: Slot) -> bool:
        wants_gpu = self.device == "cuda" or self.gpus > 0 or self.gpu_megabytes > 0
        return (
            not (wants_gpu and slot.gpu is None)
            # A CPU run on a GPU's slot would keep the GPU from those that need it.
            and not (self.device == "cpu" and slot.gpu is not None)
            and self.gpus <= slot.share + 1e-6
            and self.gpu_megabytes <= slot.gpu_megabytes
            and self.threads <= slot.threads
        )

    def __str__(self) -> str:
        parts = [f"device {self.device}"] if self.device != "any" else []
        parts += [f"{self.gpus:g} GPU"] if self.gpus else []
        parts += [f"{self.gpu_megabytes} MiB of GPU memory"] if self.gpu_megabytes else []
        parts += [f"{self.threads} CPU threads"] if self.threads else []
        return ", ".join(parts) or "any slot"


def plan_slots(settings: Settings, gpus: Sequence[Gpu], cores: int) -> list[Slot]:
    """The slots of this machine, by its settings.

    Raises:
        SettingsError: GPUs are asked for and there are none, or a slot's threads are more than the cores.
    """
    worker = settings.worker
    if worker.slots == "gpu" and not gpus:
        raise SettingsError("worker.slots: expected cpu or auto, this machine has no GPU that NVML finds, found gpu")
    if worker.threads is not None and worker.threads > cores:
        raise SettingsError(f"worker.threads: expected at most {cores}, this machine's cores, found {worker.threads}")
    if worker.slots == "cpu" or not gpus:
        count = settings.slots or max(cores // (worker.threads or 1), 1)
        threads = worker.threads or max(cores // count, 1)
        return [Slot(f"cpu-{number}", threads) for number in range(1, count + 1)]
    shares = worker.slots_per_gpu
    threads = worker.threads or max(cores // (len(gpus) * shares), 1)
    return [
        # By UUID: a GPU keeps its lock when another one is added or leaves.
        Slot(f"{gpu.uuid}-{number}", threads, gpu, 1 / shares)
        for gpu in gpus
        for number in range(1, shares + 1)
    ]


def machine_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Lease:
    """A slot that is taken. ``descriptor`` is the locked file, for the child that runs in the slot."""

    def __init__(self, slot: Slot, lock: FileLock, leases: SlotLeases) -> None:
        self.slot = slot
        self._lock = lock
        self._leases = leases
        self._note = lock.path.with_suffix(".run")

    @property
    def descriptor(self) -> int:
        return self._lock.descriptor

    def note(self, run: str) -> None:
        """Leave beside the lock which run has the slot, for :meth:`SlotLeases.left_behind`."""
        self._note.write_text(run, encoding="ascii")

    def release(self) -> None:
        """Give up this process's part; the slot is free when the child's part is gone too."""
        self._note.unlink(missing_ok=True)
        self._lock.release()
        self._leases._freed.set()


class SlotLeases:
    """The slots of this worker, as long as it runs."""

    def __init__(self, slots: Sequence[Slot], folder: Path) -> None:
        self.slots = list(slots)
        self._folder = folder
        self._freed = asyncio.Event()

    async def acquire(self, need: Need) -> Lease:
        """Wait for a slot that has what ``need`` asks for, and take it.

        Raises:
            SlotRefused: none of them has; the message names what is asked and what a slot has.
        """
        fitting = [slot for slot in self.slots if need.met_by(slot)]
        if not fitting:
            kinds = "; ".join(dict.fromkeys(str(slot) for slot in self.slots))
            raise SlotRefused(f"the run asks for {need}, a slot of this worker has {kinds}")
        while True:
            self._freed.clear()
            for slot in fitting:
                if (lease := self._take(slot)) is not None:
                    return lease
            try:
                await asyncio.wait_for(self._freed.wait(), ASK_AGAIN_SECONDS)
            except TimeoutError:
                continue

    def left_behind(self) -> list[str]:
        """Runs of slots that are free, whose worker was killed: nobody else says that they ended. Each is told once."""
        runs = []
        for path in sorted(self._folder.glob("*.run")):
            lock = FileLock(path.with_suffix(".lock"))
            if lock.acquire():
                try:
                    runs.append(path.read_text(encoding="ascii").strip())
                    path.unlink()
                finally:
                    lock.release()
        return runs

    def _take(self, slot: Slot) -> Lease | None:
        lock = FileLock(self._folder / f"{slot.name}.lock")
        return Lease(slot, lock, self) if lock.acquire() else None
