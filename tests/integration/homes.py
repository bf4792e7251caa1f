"""A home of one's own for a real ``fedbench``, and what its runs have left there."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml

from infra.store.layout import FederationLayout
from infra.store.sealed import unseal
from tasks.spec.federation import FederationSpec, parse_spec
from tasks.spec.records import RoundRecord
from tests.integration.databases import copy_databases
from tests.waiting import eventually

FEDBENCH = Path(sys.executable).parent / "fedbench"
# In the environment of every process of a home's runs, orphans too: by it they are found.
MARK = "INTEGRATION_TEST_HOME"

# Seconds a round: images of a few pixels, and the three devices with the fewest of them.
TINY: dict[str, Any] = {
    "max_rounds": 3,
    "data": {"kind": "synthetic-street", "train_images": 40, "test_images": 10, "width": 96, "height": 80},
    "detector": {"kind": "yolov3-tiny", "width": 64, "height": 64},
    "training": {"batch_size": 4},
    "evaluation": {"batch_size": 4},
    # Kills land faster than a turn ends: with the default of 2 a client could be dropped, which changes the weights.
    "participation": {"clients": ["3", "4", "5"], "turn_retries": 20},
}


def tiny(**fields: Any) -> dict[str, Any]:
    """``TINY`` with whole top-level fields replaced, mappings merged."""
    document = dict(TINY)
    for name, value in fields.items():
        document[name] = {**document[name], **value} if isinstance(value, dict) else value
    return document


class Home:
    """``FEDBENCH_HOME`` for the tests of one file. ``name`` below is a federation's."""

    def __init__(self, path: Path, *, databases: bool = True) -> None:
        """databases: a new home gets migrated databases, which spares its servers seconds; False: they make them."""
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        if databases:
            copy_databases(path)

    @property
    def mark(self) -> str:
        return str(self.path)

    def environment(self) -> dict[str, str]:
        """This process's, without its services and settings."""
        foreign = ("FEDBENCH_", "PREFECT_", "MLFLOW_", "RCLONE_", "AWS_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return kept | {"FEDBENCH_HOME": str(self.path), "COLUMNS": "160", "NO_COLOR": "1", MARK: self.mark}

    def spec_file(self, document: dict[str, Any], stem: str = "tiny") -> Path:
        path = self.path.with_name(f"{self.path.name}-{stem}.yaml")
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        return path

    def run(
        self,
        *arguments: object,
        timeout: float = 180.0,
        environment: dict[str, str] | None = None,
        folder: Path | None = None,
        umask: int = -1,
    ) -> subprocess.CompletedProcess[str]:
        """The command ``fedbench`` to its end, in ``folder``; stdout and stderr are one text. umask: -1: the same."""
        return subprocess.run(
            [FEDBENCH, *map(str, arguments)],
            env=environment or self.environment(),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            start_new_session=True,
            umask=umask,
            check=False,
        )

    def start(self, *arguments: object, output: Path) -> subprocess.Popen[bytes]:
        """The command in the background, in a process group of its own, as a shell would start it."""
        with output.open("ab") as file, interruptible():
            return subprocess.Popen(
                [FEDBENCH, *map(str, arguments)],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    # What is in the store: rclone keeps an object as a file below its bucket's folder.

    def object_path(self, key: str) -> Path:
        return self.path / "s3" / "fedbench" / key

    def document(self, key: str) -> dict[str, Any]:
        """A JSON object's content, checked against the digest that it carries."""
        document, sealed = unseal(json.loads(self.object_path(key).read_bytes()))
        assert sealed, key
        found: dict[str, Any] = document
        return found

    def layout(self, name: str) -> FederationLayout:
        return FederationLayout("federations", name)

    def keys(self, name: str) -> list[str]:
        bucket = self.path / "s3" / "fedbench"
        found = (bucket / self.layout(name).root).rglob("*")
        return sorted(str(path.relative_to(bucket)) for path in found if path.is_file())

    def records(self, name: str) -> list[RoundRecord]:
        """Validated records of all committed rounds."""
        layout = self.layout(name)
        numbers = layout.committed_rounds(self.keys(name))
        assert numbers == list(range(len(numbers)))
        return [RoundRecord.model_validate(self.document(layout.marker(number))) for number in numbers]

    def stored_spec(self, name: str) -> FederationSpec:
        key = self.layout(name).spec
        return parse_spec(self.document(key), source=key)

    # What Prefect has: read from its database, which needs no server.

    def _prefect(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.path / "prefect" / "prefect.db", timeout=30)) as database:
            return database.execute(query, values).fetchall()

    def flow_runs(self, name: str) -> list[tuple[str, str]]:
        """(flow run's name, state) of the federation and its rounds."""
        query = "SELECT name, state_type FROM flow_run WHERE name = ? OR name LIKE ? ORDER BY name"
        return [(run, str(state)) for run, state in self._prefect(query, name, f"{name} · %")]

    def artifact(self, key: str) -> tuple[str, Any]:
        """(type, data) of the newest Prefect artifact of this key."""
        query = "SELECT type, data FROM artifact WHERE key = ? ORDER BY created DESC LIMIT 1"
        ((kind, data),) = self._prefect(query, key)
        data = json.loads(data)
        return kind, json.loads(data) if isinstance(data, str) and kind == "table" else data

    # Processes.

    def processes(self) -> list[psutil.Process]:
        """Living processes of this home's runs, whosever children they are by now."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if process.environ().get(MARK) == self.mark:
                    found.append(process)
        return found

    def open_to_others(self) -> list[str]:
        """The home, and files and folders below it, that give others any right."""
        found = [path for path in (self.path, *self.path.rglob("*")) if not path.is_symlink()]
        return [f"{path}: {path.stat().st_mode & 0o777:03o}" for path in found if path.stat().st_mode & 0o077]

    def remove_weights(self) -> None:
        """Hundreds of megabytes that pytest would keep for the next runs; the logs stay."""
        for folder in ("cache", "s3"):
            shutil.rmtree(self.path / folder, ignore_errors=True)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C has its effect on what is started in here, even when these tests were started to ignore it (``&``)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def assert_no_process_left(home: Home) -> None:
    # A loader's worker looks for its dead parent every five seconds.
    eventually(lambda: not home.processes(), 15)
    left = [" ".join(process.cmdline()) for process in home.processes()]
    assert not left, left


def assert_consistent(home: Home, name: str, rounds: int) -> list[RoundRecord]:
    """The store of a finished run: every round's record follows from the one before; weights as retention has them."""
    records = home.records(name)
    spec = home.stored_spec(name)
    assert [record.round for record in records] == list(range(rounds + 1))
    assert {record.federation for record in records} == {name}
    for before, record in itertools.pairwise(records):
        plan = record.plan
        assert plan is not None
        assert plan.round == record.round
        assert plan.spec_digest == record.spec_digest
        assert plan.model == before.model
        assert [update.client for update in record.updates] == list(plan.cohort)
        assert {update.model for update in record.updates} == {before.model.sha256}
        assert {update.client: update.seed for update in record.updates} == plan.seeds
        assert record.dropped == ()
        assert before.committed < record.committed
    best = records[-1].decision.best_round
    assert json.loads(home.object_path(home.layout(name).best).read_bytes())["round"] == best
    layout, keys = home.layout(name), home.keys(name)
    kept = sorted({best, rounds - 1, rounds})
    assert [key for key in keys if key.endswith("global.safetensors")] == [layout.global_weights(n) for n in kept]
    for number in kept:
        content = home.object_path(layout.global_weights(number)).read_bytes()
        assert hashlib.sha256(content).hexdigest() == records[number].model.sha256
        assert len(content) == records[number].model.bytes
    assert [key for key in keys if "/updates/" in key or "/evaluations/" in key] == []
    assert spec.max_rounds == rounds
    return records


def digests(records: list[RoundRecord]) -> list[str]:
    """sha256 of the global weights of every round."""
    return [record.model.sha256 for record in records]


def assert_tracked_once(home: Home, name: str, status: str, records: list[RoundRecord]) -> Any:
    """Exactly one MLflow run of the federation, in ``status``, with each round's points once. Returns it."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home.path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fedbench")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.`fedbench.federation` = '{name}'")
    assert [run.info.status for run in runs] == [status]
    committed = {record.round: round(record.committed.timestamp() * 1000) for record in records}
    for key in runs[0].data.metrics:
        points = client.get_metric_history(runs[0].info.run_id, key)
        doubled = [step for step, count in Counter(point.step for point in points).items() if count > 1]
        assert (key, doubled) == (key, [])
        assert all(point.timestamp == committed[point.step] for point in points)
    rounds = client.get_metric_history(runs[0].info.run_id, "round")
    assert sorted(point.step for point in rounds) == sorted(committed)
    return runs[0]
