"""The cost of coordination: rounds without learning, fedbench's compared with those of Flower's simulation.

    pytest tests/benchmarks/bench_empty_round.py                          # checks the limits, all sizes
    python -m tests.benchmarks.bench_empty_round                          # prints the tables
    python -m tests.benchmarks.bench_empty_round --sizes tiny-5 --rounds 6 --no-flower

Training adds a constant to one tensor and evaluation detects nothing; all else is real. Fedbench's run is the command
``fedbench`` with its embedded S3, Prefect and MLflow (:mod:`tests.benchmarks.empty_turns`): it moves, checks,
aggregates, commits and tracks the weights, and they are in the store when a round ends. Flower's run is FedAvg in its
simulation with Ray (:mod:`tests.benchmarks.flower_app`), with training and evaluation on all clients and arrays of the
same shapes; it stores nothing. Both may use all cores. Seconds are medians of the rounds after the first; processor
seconds (of all processes) are their means.

Flower's requirements conflict with Prefect's, so it has a virtual environment of its own: the one that
``FEDBENCH_FLOWER_VENV`` names, else one below the user's cache folder. If that cannot be made, the comparison is
skipped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import tempfile
import venv
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import save

from flows.stored.runs import opened_store
from infra.settings import Settings
from tasks.detectors.registry import build_detector
from tasks.detectors.state import state_of
from tasks.spec.detector import YoloV3Spec, YoloV3TinySpec
from tasks.spec.federation import FederationSpec
from tasks.spec.participation import Participation
from tasks.spec.training import EvaluationSpec, TrainingSpec
from tests.benchmarks.figures_text import table
from tests.benchmarks.measured_runs import (
    HERE,
    MeasuredRun,
    data_of,
    environment_of,
    processor_seconds,
    run,
    watched,
    write_data,
    write_seconds,
)

FLOWER = "flwr[simulation]==1.42.*"
TIMES_THE_WRITING = 1.3
ROUNDS = 5
CLASSES = 7  # number of classes of the synthetic street


class Size(NamedTuple):
    detector: type[YoloV3TinySpec] | type[YoloV3Spec]
    clients: int


SIZES = {
    "tiny-5": Size(YoloV3TinySpec, 5),
    "tiny-20": Size(YoloV3TinySpec, 20),
    "tiny-100": Size(YoloV3TinySpec, 100),
    "yolov3-5": Size(YoloV3Spec, 5),
}


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def participations() -> dict[str, Participation]:
    """Return ways to send updates: one object each, from a turn per client or per slot; or one sum per turn."""
    return {
        "updates": Participation(),
        "updates, a turn a slot": Participation(shards=cores()),
        "partial sums": Participation(shards=cores(), partial_sums=True),
    }


def spec_of(size: Size, participation: Participation, rounds: int) -> FederationSpec:
    return FederationSpec(
        max_rounds=rounds,
        data=data_of(size.clients),
        detector=size.detector(width=64, height=64),
        training=TrainingSpec(),
        evaluation=EvaluationSpec(batch_size=4),
        participation=participation,
    )


def our_run(home: Path, name: str, size: Size, participation: Participation, rounds: int) -> MeasuredRun:
    data = write_data(home, 2 * size.clients, 8)
    spec = spec_of(size, participation, rounds)
    found = run(home, name, spec, data, command=(str(HERE / "empty_turns.py"),))
    for record in found.records[1:]:
        assert len(record.updates) == size.clients, record.dropped
        assert {update.train_seconds for update in record.updates} == {0.0}, "these turns really trained"
        assert record.plan is not None
        objects = len(record.plan.shards) if participation.partial_sums else size.clients
        assert len({update.weights.sha256 for update in record.updates}) == objects, "some updates are equal"
    for before, after in itertools.pairwise(found.records):
        assert before.model.sha256 != after.model.sha256
    return found


def writing(home: Path, size: Size, repeats: int = 3) -> float:
    """Return the median seconds to write a round's updates to the store and do nothing else."""
    content = save(state_of(build_detector(size.detector(), CLASSES, seed=1)))
    with opened_store(Settings(home=home)) as objects:
        return statistics.median(write_seconds(objects, content, size.clients, cores()) for _ in range(repeats))


def flower_python() -> Path:
    """Return the Python of an environment with Flower. Make the environment if there is none.

    Raises:
        RuntimeError: Flower cannot be installed.
    """
    named = os.environ.get("FEDBENCH_FLOWER_VENV", os.environ.get("OF_FEDBENCH_TESTS_FLOWER_VENV"))  # run by pytest
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(named) if named else cache / "fedbench" / "flower"
    python = folder / "bin" / "python"
    if python.exists() and _imports_flower(python):
        return python
    try:
        venv.create(folder, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", FLOWER]
        subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stdout", None) or str(error)
        raise RuntimeError(f"{folder}: Flower cannot be installed: {str(why).strip().splitlines()[-1]}") from None
    return python


def _imports_flower(python: Path) -> bool:
    command = [str(python), "-c", "import flwr, ray"]
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0


def flower_seconds(python: Path, folder: Path, size: Size, rounds: int) -> tuple[float, float]:
    """Return the median seconds of Flower's rounds after the first, and their mean processor seconds."""
    state = state_of(build_detector(size.detector(), CLASSES, seed=1))
    shapes = folder / f"{size.detector.__name__}.json"
    shapes.write_text(json.dumps([[list(tensor.shape), str(tensor.numpy().dtype)] for tensor in state.values()]))
    quiet = {"FLWR_HOME": str(folder / "flwr"), "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [str(python), str(HERE / "flower_app.py"), str(shapes), str(size.clients), str(rounds), str(cores())]
    processor: list[tuple[float, float]] = []
    errors = folder / "flower.log"
    with (
        errors.open("w") as log,
        subprocess.Popen(command, env=environment_of(quiet), stdout=subprocess.PIPE, stderr=log, text=True) as process,
        watched(process.pid, [], processor),
    ):
        output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"Flower ended with {process.returncode}: {errors.read_text()[-2000:]}")
    ends: list[float] = json.loads(output.splitlines()[-1])["ends"][1:]
    seconds = statistics.median(after - before for before, after in itertools.pairwise(ends))
    return seconds, processor_seconds(processor, ends)


def figures(folder: Path, name: str, rounds: int, *, flower: bool = True) -> list[dict[str, Any]]:
    """Return a row for each way to send updates, and one for Flower."""
    size = SIZES[name]
    rows: list[dict[str, Any]] = []
    for number, (way, participation) in enumerate(participations().items()):
        home = folder / f"{name}-{number}"
        found = our_run(home, f"empty-{name}-{number}", size, participation, rounds)
        rows.append(
            {
                "size": name,
                "what": way,
                "seconds": found.seconds,
                "processor": found.processor_seconds,
                **found.phases,
            }
        )
        if not number:
            writes = {"size": name, "what": "writing the updates alone", "seconds": writing(home, size)}
    rows.append(dict.fromkeys(rows[0]) | writes)
    if flower:
        seconds, processor = flower_seconds(flower_python(), folder, size, rounds)
        of_flower = {"size": name, "what": "Flower", "seconds": seconds, "processor": processor}
        rows.append(dict.fromkeys(rows[0]) | of_flower)
    return rows


@pytest.mark.benchmark
@pytest.mark.parametrize("name", SIZES)
def test_an_empty_round_against_flower(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        flower_python()
    except RuntimeError as error:
        pytest.skip(str(error))
    with tempfile.TemporaryDirectory(prefix="fedbench-") as folder:  # pytest's tmp_path would keep gigabytes
        rows = figures(Path(folder), name, ROUNDS)
    with capsys.disabled():
        print("\n" + table(rows))
    seconds = {row["what"]: row["seconds"] for row in rows}
    limit = seconds.pop("Flower")
    written = seconds.pop("writing the updates alone")
    if name == "yolov3-5":
        limit = max(limit, TIMES_THE_WRITING * written)
    assert seconds["updates"] <= limit, rows
    assert seconds.get("partial sums", 0.0) <= limit, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="*", choices=tuple(SIZES), default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--no-flower", action="store_true")
    options = parser.parse_args()
    for name in options.sizes:
        with tempfile.TemporaryDirectory(prefix="fedbench-") as folder:
            rows = figures(Path(folder), name, options.rounds, flower=not options.no_flower)
        print(table(rows), flush=True)


if __name__ == "__main__":
    main()
