"""Aggregating 5 and 20 updates of YOLOv3's size: time against reading the same bytes once, peak memory.

    pytest tests/benchmarks/bench_aggregation.py     # checks the limits
    python -m tests.benchmarks.bench_aggregation     # prints the figures

The updates are hard links to four distinct files (1 GB on disk). All are in the page cache, both for the aggregation
and for the plain read that it is compared with. Each measurement is a new process with one thread. Memory is counted
in sizes of an update, beyond the memory after the imports: ``resident`` includes the pages of the mapped update, which
the system may take back; ``anonymous`` is the memory that it may not. This needs Linux's ``/proc``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tasks.strategies.mean import WeightedMean
from tasks.strategies.updates import reference_of
from tests.benchmarks.figures_text import line

CLIENTS = (5, 20)
DISTINCT_FILES = 4
MODELS_AT_MOST = 3.0
# The check reads each update, then the sum reads it again and reads and writes the accumulator. 5 is usual.
TIMES_A_READ_AT_MOST = 15.0


def yolov3_state(seed: int, classes: int = 7) -> dict[str, torch.Tensor]:
    """Return random tensors with the shapes of YOLOv3's state (arXiv 1804.02767).

    61.6 M values in 222 parameters, and the statistics of 72 BatchNorms.
    """
    layers: list[tuple[int, int, int]] = [(3, 32, 3)]  # channels in, channels out, side of the kernel
    channels = 32
    for blocks in (1, 2, 8, 8, 4):  # Darknet-53
        layers.append((channels, 2 * channels, 3))
        channels *= 2
        layers += [(channels, channels // 2, 1), (channels // 2, channels, 3)] * blocks
    for width, extra in (
        (512, 0),
        (256, 256),
        (128, 128),
    ):  # the three heads; each feeds the next
        entry = 1024 if not extra else 3 * width
        if extra:
            layers.append((2 * width, width, 1))
        layers += [(entry, width, 1), (width, 2 * width, 3)] + [
            (2 * width, width, 1),
            (width, 2 * width, 3),
        ] * 2
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for index, (inputs, outputs, side) in enumerate(layers):
        state[f"{index}.conv.weight"] = torch.randn(outputs, inputs, side, side, generator=generator)
        for name in ("weight", "bias", "running_mean", "running_var"):
            state[f"{index}.bn.{name}"] = torch.rand(outputs, generator=generator)
        state[f"{index}.bn.num_batches_tracked"] = torch.tensor(seed)
    for index, width in enumerate((1024, 512, 256)):
        state[f"out{index}.weight"] = torch.randn(3 * (5 + classes), width, 1, 1, generator=generator)
        state[f"out{index}.bias"] = torch.randn(3 * (5 + classes), generator=generator)
    return state


def write_updates(folder: Path, clients: int) -> list[Path]:
    """Write a file for each client: hard links to DISTINCT_FILES distinct files."""
    files = []
    for client in range(clients):
        source, file = (
            folder / f"distinct-{client % DISTINCT_FILES}",
            folder / f"{clients}-{client:02d}.safetensors",
        )
        if not source.exists():
            save_file(yolov3_state(client), source)
        os.link(source, file)
        files.append(file)
    return files


def _memory() -> dict[str, int]:
    with open("/proc/self/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return {name: 1024 * int(fields[name].split()[0]) for name in ("VmRSS", "RssAnon")}


class _PeakMemory:
    """The largest resident and anonymous memory during a block, sampled every 2 ms.

    getrusage cannot be used: this process inherits its maximum from the parent process.
    """

    def __init__(self) -> None:
        self.peak = _memory()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.peak = {name: max(size, self.peak[name]) for name, size in _memory().items()}

    def __enter__(self) -> _PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def _read_once(files: list[Path]) -> float:
    buffer = memoryview(bytearray(1 << 20))
    started = time.perf_counter()
    for file in files:
        with open(file, "rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
    return time.perf_counter() - started


def _aggregate(files: list[Path]) -> float:
    started = time.perf_counter()
    average = WeightedMean()
    for number, file in enumerate(files):
        average.accumulate(file, 50 + number, client=str(number))
    result = average.result()
    seconds = time.perf_counter() - started
    assert sum(tensor.numel() for tensor in result.values()) > 61_000_000
    return seconds


def _measure_here(files: list[Path], what: str) -> dict[str, float]:
    """Measure in this process. ``time``: the best of two alternating reads and aggregations; ``memory``: the peaks."""
    torch.set_num_threads(1)
    # The first use of each operation loads code. Do it before the measurement.
    with tempfile.TemporaryDirectory() as folder:
        save_file({"w": torch.ones(10)}, Path(folder, "small"))
        for_warmth = WeightedMean(reference_of({"w": torch.ones(10)}))
        for client in ("1", "2"):
            for_warmth.accumulate(Path(folder, "small"), 1, client=client)
    if what == "memory":
        before = _memory()
        with _PeakMemory() as watch:
            _aggregate(files)
        return {name: watch.peak[name] - before[name] for name in before}
    seconds = [(_read_once(files), _aggregate(files)) for _ in range(2)]
    return {"read": min(read for read, _ in seconds), "aggregate": min(aggregate for _, aggregate in seconds)}


def measure(files: list[Path], what: str) -> dict[str, float]:
    """Run a measurement in a new process."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, __file__, "--measure", what, *map(str, files)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=root)
    return json.loads(done.stdout)


def figures(folder: Path, clients: int) -> dict[str, float]:
    files = write_updates(folder, clients)
    size = files[0].stat().st_size
    seconds = measure(files, "time")
    found = {
        "clients": clients,
        "gigabytes": clients * size / 1e9,
        "aggregate_seconds": seconds["aggregate"],
        "read_seconds": seconds["read"],
        "times_a_read": seconds["aggregate"] / seconds["read"],
    }
    if Path("/proc/self/status").exists():
        memory = measure(files, "memory")
        found |= {"resident_models": memory["VmRSS"] / size, "anonymous_models": memory["RssAnon"] / size}
    return found


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:  # pytest's tmp_path would keep gigabytes of the last three runs
        yield Path(name)


@pytest.mark.benchmark
@pytest.mark.parametrize("clients", CLIENTS)
def test_aggregation(folder: Path, clients: int, capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(folder, clients)
    with capsys.disabled():
        print("\n" + line(found))
    assert found["times_a_read"] <= TIMES_A_READ_AT_MOST, found
    if "resident_models" not in found:
        pytest.skip("memory is measured on Linux only")
    assert found["resident_models"] <= MODELS_AT_MOST, found
    assert found["anonymous_models"] <= MODELS_AT_MOST, found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--measure", choices=("time", "memory"), help=argparse.SUPPRESS)
    parser.add_argument("--clients", type=int, nargs="*", default=list(CLIENTS), help="numbers of updates")
    parser.add_argument("files", nargs="*", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(_measure_here(options.files, options.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for clients in options.clients:
            print(line(figures(Path(folder), clients)), flush=True)


if __name__ == "__main__":
    main()
