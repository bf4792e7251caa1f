"""Warm start: the time from submitting a run to its flow's first line, compared with Prefect's process worker.

    pytest tests/benchmarks/bench_worker.py                  # checks the limits; SQLite
    python -m tests.benchmarks.bench_worker                  # prints the figures
    python -m tests.benchmarks.bench_worker --postgres URL   # postgresql+asyncpg://…, an empty database with pg_trgm

Both workers use one server and have pools of their own. Their runs alternate, so that other load on the machine affects
both. Both look for work every second, and run the same flow, which imports torch and torchvision. For several runs
at once, the time until the last one's first line counts. The next run is submitted when no process of the last is left.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import ClassVar, NamedTuple
from uuid import UUID

import psutil
import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from infra.servers.prefect_server import PrefectService
from infra.worker.gpu_worker import GpuWorker
from tests.integration.workers import Worker, deploy, ended, make_pool, submit
from tests.waiting import eventually

AT_ONCE = 4
# Least ratio of the process worker's time to ours: for one run, and for four at once.
LIMITS = {"sqlite": (10.0, 4.0), "postgresql": (10.0, 6.0)}
REPEATS = 3


class OnPostgres(PrefectService):
    url: ClassVar[str]

    def environment(self, port: int) -> dict[str, str]:
        return super().environment(port) | {"PREFECT_SERVER_DATABASE_CONNECTION_URL": self.url}


class Figures(NamedTuple):
    """Median seconds of our worker and of Prefect's, in this order, for one run and for four at once."""

    one: tuple[float, float]
    four: tuple[float, float]


def descendants(worker: Worker) -> int:
    return len(psutil.Process(worker.process.pid).children(recursive=True))


def seconds_to_first_line(deployment: UUID, folder: Path, count: int) -> float:
    markers = [folder / f"{time.monotonic_ns()}-{number}" for number in range(count)]
    began = time.monotonic()
    runs = [submit(deployment, {"marker": str(marker)}) for marker in markers]
    eventually(lambda: all(marker.exists() for marker in markers), 600)
    last = max(float(marker.read_text().split()[0]) for marker in markers)
    assert [ended(run, 120).state_name for run in runs] == ["Completed"] * count
    return last - began


def measure(folder: Path, postgres: str | None, repeats: int = REPEATS) -> Figures:
    from prefect.workers.process import ProcessWorker

    service: PrefectService = PrefectService(folder / "server")
    if postgres is not None:
        OnPostgres.url = postgres
        service = OnPostgres(folder / "server")
    service.ensure()
    workers: list[Worker] = []
    try:
        with temporary_settings({PREFECT_API_URL: service.address, PREFECT_API_AUTH_STRING: service.auth}):
            deployments = []
            for kind in (GpuWorker, ProcessWorker):
                make_pool(f"pool-{kind.type}", kind.type, kind.get_default_base_job_template())
                deployments.append(deploy("warm_flow.py:first_line", Path(__file__).parent, f"pool-{kind.type}"))
                workers.append(
                    Worker(
                        folder / kind.type,
                        f"pool-{kind.type}",
                        kind=kind.type,
                        FEDBENCH_SLOTS=str(AT_ONCE),
                        PREFECT_WORKER_QUERY_SECONDS="1",
                    )
                )
            for worker in workers:
                worker.await_ready()
            idle = [descendants(worker) for worker in workers]

            def measured(deployment: UUID, count: int) -> float:
                eventually(lambda: [descendants(worker) for worker in workers] == idle, 120)
                return seconds_to_first_line(deployment, folder, count)

            for deployment in deployments:  # each worker's first run compiles code and fills the disk's cache
                measured(deployment, 1)
            medians = []
            for count in (1, AT_ONCE):
                rows = [[measured(each, count) for each in deployments] for _ in range(repeats)]
                ours, theirs = (statistics.median(row[column] for row in rows) for column in range(2))
                medians.append((ours, theirs))
            return Figures(*medians)
    finally:
        for worker in workers:
            worker.kill()
        service.stop()


@pytest.mark.benchmark
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_warm_start(tmp_path: Path, database: str) -> None:
    postgres = os.environ.get("POSTGRES_URL") if database == "postgresql" else None
    if database == "postgresql" and postgres is None:
        pytest.skip("POSTGRES_URL is not set: there is no PostgreSQL server to test with")
    figures = measure(tmp_path, postgres)
    print(text(figures, database))
    one, four = LIMITS[database]
    assert figures.one[1] / figures.one[0] >= one
    assert figures.four[1] / figures.four[0] >= four


def text(figures: Figures, database: str) -> str:
    lines = [f"{database}: submission to the flow's first line, seconds (ours, process worker, ratio)"]
    for name, (ours, theirs) in zip(("one run", f"{AT_ONCE} at once"), figures, strict=True):
        lines.append(f"  {name}: {ours:.2f}, {theirs:.2f}, {theirs / ours:.1f} ×")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--postgres", metavar="URL")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-worker-") as folder:
        figures = measure(Path(folder), options.postgres, options.repeats)
    print(text(figures, "sqlite" if options.postgres is None else "postgresql"))


if __name__ == "__main__":
    main()
