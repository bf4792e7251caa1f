"""Slots of a worker, and their leases: two runs never share a slot, even after the worker was killed.

A slot is a GPU, a fraction of one, or CPU threads. Its lease is an OS lock on ``<home>/slots/<slot>.lock``. The open
file is passed to the child that runs in the slot, so the kernel frees the lock when the last process that has the file
open is gone, however it ended, and not before. So a worker that starts after a kill, or a second worker of the same
home, waits for runs that still go on.

A worker that ends asks the runs in its slots to leave, by a file beside each lock. A run that takes turns one after
another looks for the file before each.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infra.errors import SettingsError, SlotRefused
from infra.files.lock import FileLock
from infra.settings import Settings
from infra.worker.gpus import VISIBLE, Gpu

# How often slots that another worker may have freed are tried again: it does not notify us.
TRY_AGAIN_SECONDS = 0.5
LEAVE_SUFFIX = ".leave"


@dataclass(frozen=True)
class Slot:
    """What one run may use at a time. ``share`` is its part of ``gpu``; 0 in a slot without a GPU."""

    name: str
    threads: int
    gpu: Gpu | None = None
    share: float = 0.0

    @property
    def gpu_megabytes(self) -> int:
        return int(self.gpu.megabytes * self.share) if self.gpu is not None else 0

    def environment(self) -> dict[str, str]:
        """Return variables for a run in this slot. A call sets the threads of torch, which is imported already."""
        variables = {
            VISIBLE: self.gpu.uuid if self.gpu is not None else "",
            "OMP_NUM_THREADS": str(self.threads),
            "FEDBENCH_SLOT": self.name,
        }
        if self.gpu is not None and self.share < 1:
            # torch's allocator reads it when it starts. Setting it by a call would start CUDA in runs that need none.
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
    """What a run requires of its slot; a field that is 0 requires nothing."""

    device: Literal["any", "cpu", "cuda"] = "any"
    gpus: float = 0.0
    gpu_megabytes: int = 0
    threads: int = 0

    def met_by(self, slot: Slot) -> bool:
        wants_gpu = self.device == "cuda" or self.gpus > 0 or self.gpu_megabytes > 0
        return (
            not (wants_gpu and slot.gpu is None)
            # A CPU run in a GPU's slot would keep the GPU from runs that need it.
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
    """Return the slots of this machine, by its settings.

    Raises:
        SettingsError: the settings require GPUs and there are none, or give a slot more threads than there are cores.
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
        # Named by UUID: a GPU keeps its lock when another GPU is added or removed.
        Slot(f"{gpu.uuid}-{number}", threads, gpu, 1 / shares)
        for gpu in gpus
        for number in range(1, shares + 1)
    ]


def slots_folder(home: Path) -> Path:
    return home / "slots"


def asked_to_leave(home: Path, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether the worker has asked the run of this process to leave. It has ``home`` and gave a slot."""
    slot = environment.get("FEDBENCH_SLOT")
    return slot is not None and (slots_folder(home) / f"{slot}{LEAVE_SUFFIX}").exists()


def machine_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Lease:
    """The lease of a slot. ``descriptor`` is that of the locked file, for the child that runs in the slot."""

    def __init__(self, slot: Slot, lock: FileLock, leases: SlotLeases) -> None:
        self.slot = slot
        self._lock = lock
        self._leases = leases
        self._note = lock.path.with_suffix(".run")
        self._notice = lock.path.with_suffix(LEAVE_SUFFIX)
        self._notice.unlink(missing_ok=True)  # from a worker that was killed
        leases._held.add(self)

    @property
    def descriptor(self) -> int:
        return self._lock.descriptor

    def note(self, run: str) -> None:
        """Write beside the lock which run has the slot, for :meth:`SlotLeases.left_behind`."""
        self._note.write_text(run, encoding="ascii")

    def ask_to_leave(self) -> None:
        """Ask the run in the slot to leave soon; :func:`asked_to_leave` returns this there."""
        self._notice.touch()

    def release(self) -> None:
        """Close the lock's file in this process. The slot is free once no child has it open either."""
        self._leases._held.discard(self)
        self._note.unlink(missing_ok=True)
        self._notice.unlink(missing_ok=True)
        self._lock.release()
        self._leases._freed.set()


class SlotLeases:
    """The slots of this worker, and what leases them to runs."""

    def __init__(self, slots: Sequence[Slot], folder: Path) -> None:
        self.slots = list(slots)
        self._folder = folder
        self._freed = asyncio.Event()
        self._held: set[Lease] = set()

    def ask_to_leave(self) -> None:
        """Ask the runs in all slots to leave, because the worker ends."""
        for lease in self._held:
            lease.ask_to_leave()

    async def acquire(self, need: Need) -> Lease:
        """Wait for a slot that meets ``need``, and take it.

        Raises:
            SlotRefused: no slot meets it; the message names what is required and what the slots have.
        """
        fitting = [slot for slot in self.slots if need.met_by(slot)]
        if not fitting:
            kinds = "; ".join(dict.fromkeys(str(slot) for slot in self.slots))
            raise SlotRefused(f"the run needs {need}; slots of this worker have {kinds}")
        while True:
            self._freed.clear()
            for slot in fitting:
                if (lease := self._take(slot)) is not None:
                    return lease
            try:
                await asyncio.wait_for(self._freed.wait(), TRY_AGAIN_SECONDS)
            except TimeoutError:
                continue

    def left_behind(self) -> list[str]:
        """Return the runs that ended because their worker was killed, each once: nobody else can report their end.

        They are those that are noted at a slot that is free.
        """
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
