"""The cost of each federated method, and of FedAvg against an older commit.

    pytest tests/benchmarks/bench_methods.py                     # prints the table of all methods, for a small detector
    python -m tests.benchmarks.bench_methods                     # the same, at the size of docs/measurements.md
    python -m tests.benchmarks.bench_methods --commit REVISION   # FedAvg against that commit: exit 1 over the limits

A *turn* is a client's, from its request to its record, in the third round, so that every state exists; an
*aggregation* starts from stored updates and ends with the stored model and states. Two processes are measured by turns,
the method and FedAvg with the same local training (or FedAvg of two commits), each going first equally often. Figures
are medians over the pairs. Memory is the peak of the process's resident memory, mapped files included; it needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.benchmarks.compared_methods import baseline_of, method_fields
from tests.benchmarks.figures_text import table
from tests.benchmarks.measured_detectors import DETECTORS

ROOT = Path(__file__).resolve().parents[2]
PAIRS = 7
OPERATIONS = ("turn", "aggregate")
# Limits of FedAvg against an older commit.
SLOWER_AT_MOST, LARGER_AT_MOST = 1.05, 1.02
# Figures of both processes, by name.
Pairs = list[tuple[dict[str, float], dict[str, float]]]


class Size(NamedTuple):
    """What is measured. images: training images of all five devices together. clients: how many of them take part."""

    detector: str = "fcos-lite0"
    images: int = 100
    clients: int = 5


class Measured:
    """A process that runs rounds of one specification with the sources in ``tree``."""

    def __init__(self, tree: Path, size: Size, fields: Mapping[str, Any]) -> None:
        command = [sys.executable, str(ROOT / "tests" / "benchmarks" / "measured_rounds.py"), size.detector]
        command += [str(size.clients), str(size.images), json.dumps(dict(fields))]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        self._process = subprocess.Popen(
            command, cwd=tree, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.bytes: dict[str, int] = self._answer()["ready"]

    def measure(self, operation: str) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{operation}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # other lines are the services'
                found: dict[str, Any] = json.loads(line)
                return found
        raise RuntimeError(f"the measured process ended with {self._process.wait()}")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


@contextlib.contextmanager
def processes(*kinds: tuple[Path, Size, Mapping[str, Any]]) -> Iterator[list[Measured]]:
    with contextlib.ExitStack() as stack:
        found = []
        for kind in kinds:
            found.append(Measured(*kind))
            stack.callback(found[-1].close)
        yield found


def pairs_of(first: Measured, second: Measured, operation: str, pairs: int) -> Pairs:
    """Return measured pairs (first, second). Each of the two goes first equally often."""
    found = []
    for number in range(pairs):
        if number % 2:
            later = second.measure(operation)
            found.append((first.measure(operation), later))
        else:
            found.append((first.measure(operation), second.measure(operation)))
    return found


def ratio(pairs: Pairs, name: str) -> float:
    """Return the median over the pairs of the second one's figure over the first one's."""
    return statistics.median(second[name] / first[name] for first, second in pairs)


def method_row(name: str, fields: dict[str, Any], size: Size, pairs: int) -> dict[str, object]:
    """Return a row of the table: the method's costs over those of FedAvg with the same local training."""
    with processes((ROOT, size, baseline_of(fields)), (ROOT, size, fields)) as (plain, method):
        row: dict[str, object] = {"method": name}
        for operation in OPERATIONS:
            found = pairs_of(plain, method, operation, pairs)
            walls = [second["wall"] / first["wall"] for first, second in found]
            model = method.bytes["model"]
            row |= {
                operation: statistics.median(walls),
                f"least {operation}": min(walls),
                f"most {operation}": max(walls),
                f"{operation} memory": ratio(found, "peak"),
                f"{operation} models": statistics.median(
                    (second["peak"] - second["before"]) / model for _, second in found
                ),
            }
        return row | {name: method.bytes[name] / method.bytes["model"] for name in ("up", "down")}


def methods_table(size: Size, pairs: int, methods: list[str]) -> list[dict[str, object]]:
    rows = []
    for name, fields in method_fields().items():
        if name in methods or not methods:
            rows.append(method_row(name, fields, size, pairs))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


@contextlib.contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """Yield a temporary worktree of ``commit``."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def against(commit: str, size: Size, pairs: int) -> list[dict[str, object]]:
    """Return rows of FedAvg's figures here over those of ``commit``."""
    rows: list[dict[str, object]] = []
    with checked_out(commit) as tree, processes((tree, size, {}), (ROOT, size, {})) as (before, now):
        for operation in OPERATIONS:
            found = pairs_of(before, now, operation, pairs)
            row: dict[str, object] = {"operation": operation, "pairs": pairs}
            rows.append(row | {name: ratio(found, name) for name in ("wall", "processor", "peak")})
    return rows


@pytest.mark.benchmark
def test_the_cost_of_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    rows = methods_table(Size("yolov3-tiny", 40, 2), PAIRS, [])
    with capsys.disabled():
        print("\n" + table(rows))
    assert {row["method"] for row in rows} == method_fields().keys()
    for row in rows:
        figures = [value for value in row.values() if isinstance(value, float)]
        assert len(figures) == len(row) - 1
        assert min(figures) > 0, row


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--commit", help="measure FedAvg against this commit")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--detector", choices=DETECTORS, default=Size().detector)
    parser.add_argument("--images", type=int, default=Size().images, help="training images of all devices together")
    parser.add_argument("--clients", type=int, default=Size().clients, choices=range(1, 6))
    parser.add_argument("--methods", nargs="*", default=[], help="names of the suite methods' experiments; none: all")
    options = parser.parse_args()
    size = Size(options.detector, options.images, options.clients)
    if options.commit is None:
        print(table(methods_table(size, options.pairs, options.methods)))
        return 0
    rows = against(options.commit, size, options.pairs)
    print(table(rows))
    limits = {"wall": SLOWER_AT_MOST, "peak": LARGER_AT_MOST}
    figures = [(row, name, most) for row in rows for name, most in limits.items()]
    over = [f"{row['operation']} {name}" for row, name, most in figures if float(str(row[name])) > most]
    print(f"over the limits: {', '.join(over)}" if over else "within the limits")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
