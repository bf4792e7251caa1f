"""Federations of the benchmarks: their data, the command in a process of its own, and its time and memory."""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from flows.stored.runs import opened_store, read_run
from infra.settings import Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from tasks.data.catalog import load_data
from tasks.data.export.coco import write_coco
from tasks.spec.clients import Iid
from tasks.spec.data import Coco, SyntheticStreet
from tasks.spec.federation import FederationSpec
from tasks.spec.records import RoundRecord

HERE = Path(__file__).resolve().parent
DATA_NAME = "many-clients"
MEGABYTE = 1e6


@dataclass(frozen=True)
class MeasuredRun:
    """A run that has ended: its records and samples over its whole duration.

    memory: (time, resident bytes) of its coordinator.
    processor: (time, processor seconds) of the coordinator and all its descendants.
    """

    records: list[RoundRecord]
    record_bytes: list[int]
    memory: list[tuple[float, int]]
    processor: list[tuple[float, float]]

    @property
    def round_seconds(self) -> list[float]:
        """Return the seconds of rounds 1, 2, …, each from the commit before to its own."""
        return [
            (after.committed - before.committed).total_seconds() for before, after in itertools.pairwise(self.records)
        ]

    @property
    def phases(self) -> dict[str, float]:
        """Return median seconds by phase, without the first round. The rest is commit, tracking and Prefect's runs."""
        records = self.records[2:]
        phases = {
            name: statistics.median(record.seconds[name] for record in records) for name in self.records[-1].seconds
        }
        rest = [
            seconds - sum(record.seconds.values())
            for record, seconds in zip(records, self.round_seconds[1:], strict=True)
        ]
        return {**phases, "commit, tracking": statistics.median(rest)}

    @property
    def seconds(self) -> float:
        """Return the median seconds of the rounds after the first."""
        return statistics.median(self.round_seconds[1:])

    @property
    def processor_seconds(self) -> float:
        """Return the mean processor seconds of the rounds after the first: coordinator, slots and services."""
        return processor_seconds(self.processor, [record.committed.timestamp() for record in self.records[1:]])

    def peak_memory(self, number: int) -> int:
        """Return the coordinator's largest resident bytes from the commit before round ``number`` to its own."""
        began, ended = (self.records[at].committed.timestamp() for at in (number - 1, number))
        return max(size for moment, size in self.memory if began <= moment <= ended)


def write_data(folder: Path, images: int, test_images: int) -> Path:
    """Write synthetic street images of the smallest size, in COCO's form, for any number of clients."""
    street = SyntheticStreet(train_images=max(images, 40), test_images=test_images, width=64, height=64)
    root = folder / f"street-{images}-{test_images}"
    if not root.exists():
        write_coco(load_data(street, root_of=lambda name: None, cache=folder / "drawn"), root)
    return root


def data_of(clients: int) -> Coco:
    return Coco(name=DATA_NAME, clients=Iid(clients=clients))


def run(
    home: Path, name: str, spec: FederationSpec, data: Path, *, command: Sequence[str] = ("-m", "flows.cli")
) -> MeasuredRun:
    """Run ``fedbench run`` to its end. command: arguments to Python that name another main program."""
    home.mkdir(parents=True, exist_ok=True)
    file = home / f"{name}.yaml"
    file.write_text(spec.to_yaml(), encoding="utf-8")
    arguments = [sys.executable, *command, "run", str(file), "--name", name, "--home", str(home), "--quiet"]
    roots = f'{{"{DATA_NAME}": "{data}"}}'
    environment = environment_of({"PYTHONPATH": str(HERE.parents[1]), "FEDBENCH_DATA_ROOTS": roots})
    memory: list[tuple[float, int]] = []
    processor: list[tuple[float, float]] = []
    with (
        subprocess.Popen(arguments, env=environment, cwd=HERE.parents[1], stdout=subprocess.DEVNULL) as process,
        watched(process.pid, memory, processor),
    ):
        code = process.wait()
    if code:
        raise RuntimeError(f"{name}: fedbench ended with {code}; see {home / 'runs' / name}")
    settings = Settings(home=home)
    with opened_store(settings) as objects:
        records = read_run(objects, settings, name).records
        layout = FederationLayout(settings.s3.prefix, name)
        sizes = [objects.size(layout.marker(record.round)) or 0 for record in records]
    return MeasuredRun(records, sizes, memory, processor)


def environment_of(own: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment without the user's services and settings, and with ``own``."""
    foreign = ("FEDBENCH_", "PREFECT_", "MLFLOW_", "AWS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | dict(own)


@contextlib.contextmanager
def watched(pid: int, memory: list[tuple[float, int]], processor: list[tuple[float, float]]) -> Iterator[None]:
    """Sample process ``pid`` during the block: its resident bytes, and its and its descendants' processor seconds."""
    thread = threading.Thread(target=_watch, args=(pid, memory, processor))
    thread.start()
    yield
    thread.join()


def _watch(pid: int, memory: list[tuple[float, int]], processor: list[tuple[float, float]]) -> None:
    used: dict[int, float] = {}
    try:
        process = psutil.Process(pid)
        for number in itertools.count():
            if process.status() == psutil.STATUS_ZOMBIE:
                return
            memory.append((time.time(), process.memory_info().rss))
            if number % 4 == 0:
                for one in (process, *process.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        times = one.cpu_times()
                        used[one.pid] = times.user + times.system
                processor.append((time.time(), sum(used.values())))
            time.sleep(0.05)
    except psutil.NoSuchProcess:
        pass


def processor_seconds(samples: Sequence[tuple[float, float]], ends: Sequence[float]) -> float:
    """Return the mean processor seconds of the rounds between the times ``ends``."""
    times, used = zip(*samples, strict=True)
    return float(np.interp(ends[-1], times, used) - np.interp(ends[0], times, used)) / (len(ends) - 1)


def write_seconds(objects: ObjectStore, content: bytes, count: int, writers: int) -> float:
    """Return the seconds to put ``content`` as ``count`` objects, ``writers`` at a time: the store's cost alone."""
    from concurrent.futures import ThreadPoolExecutor

    keys = [f"written/{number}" for number in range(count)]
    objects.put_bytes(keys[0], content[:1])  # the first call creates the client
    began = time.perf_counter()
    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(lambda key: objects.put_bytes(key, content), keys))
    seconds = time.perf_counter() - began
    objects.delete(keys)
    return seconds
