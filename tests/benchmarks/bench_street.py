"""Four rounds of real Street-5 with three seeds, compared with measurements of the original benchmark.

Run as a script (about ten minutes on two cores)::

    FEDBENCH_STREET_DIR=/path/to/street python -m tests.benchmarks.bench_street

or as a test with ``make bench``. The original was measured on a machine with two cores: a round takes 284 s, of which
34 % is evaluation; ``map50`` over detections with a score of at least 0.05 is 0.076 after four rounds.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from flows.stored.runs import opened_store, read_run
from infra.settings import Settings
from tasks.spec.records import RoundRecord

SPEC = Path(__file__).with_name("street5_four_rounds.yaml")
SEEDS = (1, 2, 3)
ORIGINAL_ROUND_SECONDS = 284.0
ORIGINAL_EVALUATION_SECONDS = 0.34 * ORIGINAL_ROUND_SECONDS


def run_seed(seed: int, home: Path, street: Path) -> list[RoundRecord]:
    """Run a federation in a process of its own, as a user does. Return its records."""
    name = f"four-rounds-{seed}"
    command = [str(Path(sys.executable).with_name("fedbench")), "run", str(SPEC), "--seed", str(seed), "--name", name]
    environment = {**os.environ, "FEDBENCH_STREET_DIR": str(street)}
    subprocess.run([*command, "--home", str(home), "--quiet"], check=True, env=environment)
    settings = Settings(home=home)
    with opened_store(settings) as objects:
        return read_run(objects, settings, name).records


def measure(home: Path, street: Path) -> dict[str, float]:
    """Return the figures over all seeds. Print each seed's figures when they are ready."""
    final, rounds, evaluations, bytes_up = [], [], [], []
    for seed in SEEDS:
        records = run_seed(seed, home, street)
        curve = [record.metrics.map50_voc10 or 0.0 for record in records]
        print(f"seed {seed}: map50_voc10 by round {', '.join(f'{value:.3f}' for value in curve)}", flush=True)
        final.append(curve[-1])
        for record in records[1:]:
            rounds.append(sum(record.seconds.values()))
            evaluations.append(record.seconds["stop_and_eval"])
            raw = record.model.bytes * len(record.updates)
            bytes_up.append(record.bytes_up / raw)
    figures = {
        "map50_voc10, mean of seeds": statistics.mean(final),
        "map50_voc10, spread (standard deviation)": statistics.stdev(final),
        "seconds a round, median": statistics.median(rounds),
        "round / the original's": statistics.median(rounds) / ORIGINAL_ROUND_SECONDS,
        "evaluation seconds, median": statistics.median(evaluations),
        "evaluation / the original's": statistics.median(evaluations) / ORIGINAL_EVALUATION_SECONDS,
        "bytes up / raw float32, largest": max(bytes_up),
    }
    for name, value in figures.items():
        print(f"{name}: {value:.4g}")
    return figures


@pytest.mark.benchmark
def test_four_rounds_of_street_beat_the_original(tmp_path: Path, street_dir: Path) -> None:
    figures = measure(tmp_path, street_dir)
    assert figures["map50_voc10, mean of seeds"] >= 0.10
    assert figures["round / the original's"] <= 0.6
    assert figures["evaluation / the original's"] <= 0.25
    assert figures["bytes up / raw float32, largest"] <= 1.01


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="fedbench-") as folder:
        measure(Path(folder), Path(os.environ["FEDBENCH_STREET_DIR"]))
