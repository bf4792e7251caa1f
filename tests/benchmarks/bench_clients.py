"""Many clients: seconds per client and the coordinator's memory, from 10 to 1,000 clients.

    pytest tests/benchmarks/bench_clients.py                         # checks the limits
    python -m tests.benchmarks.bench_clients                         # prints the table
    python -m tests.benchmarks.bench_clients --clients 10 100

Each client has two images of 64 x 64 pixels and really trains a detector of 0.14 MB
(:mod:`tests.benchmarks.narrow_detector`), in the command ``fedbench`` with its embedded services. A turn has up to 50
clients. Seconds are medians of the rounds after the first; memory is the coordinator's largest resident memory in a
round.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tasks.spec.detector import YoloV3TinySpec
from tasks.spec.federation import FederationSpec
from tasks.spec.participation import Participation
from tasks.spec.training import EvaluationSpec, TrainingSpec
from tests.benchmarks.figures_text import table
from tests.benchmarks.measured_runs import HERE, MEGABYTE, data_of, run, write_data

CLIENTS = (10, 100, 1000)
ROUNDS = 4
IMAGES = 2  # of each client
CLIENTS_A_TURN = 50
# Largest ratio of the seconds per client at one size to those at a tenth of it. The ratio is meaningless if the machine
# is busy during only one of the two runs.
SECONDS_AT_MOST = 1.5
# Relative growth of the coordinator's largest memory from the second round to the last.
GROWTH_AT_MOST = 0.1


def spec_of(clients: int, rounds: int) -> FederationSpec:
    return FederationSpec(
        max_rounds=rounds,
        data=data_of(clients),
        detector=YoloV3TinySpec(width=64, height=64),
        training=TrainingSpec(batch_size=2),
        evaluation=EvaluationSpec(batch_size=4),
        participation=Participation(shards=max(2, -(-clients // CLIENTS_A_TURN))),
    )


def figures(folder: Path, clients: int, rounds: int) -> dict[str, Any]:
    """Return a row of the table."""
    data = write_data(folder, IMAGES * clients, 8)
    found = run(
        folder / f"home-{clients}",
        f"clients-{clients}",
        spec_of(clients, rounds),
        data,
        command=(str(HERE / "narrow_detector.py"),),
    )
    for record in found.records[1:]:
        assert len(record.updates) == clients, record.dropped
        assert record.model.bytes < MEGABYTE
    return {
        "clients": clients,
        "ms a client": 1000 * found.seconds / clients,
        "round s": found.seconds,
        **found.phases,
        "round 2 MB": found.peak_memory(2) / MEGABYTE,
        f"round {rounds} MB": found.peak_memory(rounds) / MEGABYTE,
        "round.json kB": found.record_bytes[-1] / 1000,
    }


@pytest.mark.benchmark
def test_many_clients(capsys: pytest.CaptureFixture[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="fedbench-") as folder:
        rows = [figures(Path(folder), clients, ROUNDS) for clients in CLIENTS]
    with capsys.disabled():
        print("\n" + table(rows))
    of = {row["clients"]: row for row in rows}
    assert of[1000]["ms a client"] <= SECONDS_AT_MOST * of[100]["ms a client"], rows
    assert of[100]["ms a client"] <= SECONDS_AT_MOST * of[10]["ms a client"], rows
    for row in rows:
        assert row[f"round {ROUNDS} MB"] <= (1 + GROWTH_AT_MOST) * row["round 2 MB"], row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="*", default=list(CLIENTS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="fedbench-") as folder:
        for clients in options.clients:
            rows.append(figures(Path(folder), clients, options.rounds))
            print(table(rows), flush=True)


if __name__ == "__main__":
    main()
