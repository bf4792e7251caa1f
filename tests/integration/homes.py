"""A home for a real ``fedbench`` command, and access to the files and processes of its runs."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
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
from infra.tracking.federation import SYSTEM_METRICS
from tasks.spec.federation import FederationSpec, parse_spec
from tasks.spec.records import EvaluationRecord, RoundRecord
from tests.integration.databases import copy_databases
from tests.waiting import eventually

FEDBENCH = Path(sys.executable).parent / "fedbench"
# This variable is in the environment of every process of a home's runs, orphans too, so that tests find them all.
MARK = "INTEGRATION_TEST_HOME"
# Variables with which a run draws its plots, as runs do by default.
PLOTS = {"FEDBENCH_PLOTS": "true"}

# A round takes seconds: the images have few pixels, and the three devices are those with the fewest images.
TINY: dict[str, Any] = {
    "max_rounds": 3,
    "data": {"kind": "synthetic-street", "train_images": 40, "test_images": 10, "width": 96, "height": 80},
    "detector": {"kind": "fcos-lite0", "width": 64, "height": 64, "weights": {"kind": "random"}, "frozen_blocks": 0},
    "training": {"batch_size": 4},
    "evaluation": {"batch_size": 4},
    # Kills come faster than turns end: with the default of 2, a client could be dropped, which changes the weights.
    "participation": {"clients": ["3", "4", "5"], "turn_retries": 20},
}


# Fields of a specification with which a method that needs SGD without momentum and clipping runs.
PLAIN_SGD: dict[str, Any] = {"optimizer": {"kind": "sgd", "momentum": 0}, "clip_norm": None}


def tiny(**fields: Any) -> dict[str, Any]:
    """Return ``TINY`` with ``fields`` replaced. Mappings are merged with those of ``TINY``."""
    document = dict(TINY)
    for name, value in fields.items():
        document[name] = {**document.get(name, {}), **value} if isinstance(value, dict) else value
    return document


class Home:
    """A ``FEDBENCH_HOME`` for the tests of a file. ``name`` below is the name of a federation."""

    def __init__(self, path: Path, *, databases: bool = True) -> None:
        """databases: copy migrated databases into a new home, which saves seconds; False: its servers create them."""
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        if databases:
            copy_databases(path)

    @property
    def mark(self) -> str:
        return str(self.path)

    def environment(self) -> dict[str, str]:
        """Return this process's environment without its services and settings, and with this home.

        Runs draw no plots: that would take a fifth of their time. Tests that look at plots add :data:`PLOTS`.
        """
        foreign = ("FEDBENCH_", "PREFECT_", "MLFLOW_", "RCLONE_", "AWS_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        ours = {"FEDBENCH_HOME": str(self.path), "FEDBENCH_PLOTS": "false", MARK: self.mark}
        return kept | {"COLUMNS": "160", "NO_COLOR": "1"} | ours

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
        """Run ``fedbench`` in ``folder`` to its end. stdout and stderr are one text. umask: -1: this process's."""
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
        """Start the command in the background, in a process group of its own, as a shell would."""
        with output.open("ab") as file, interruptible():
            return subprocess.Popen(
                [FEDBENCH, *map(str, arguments)],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    # The store: rclone keeps each object as a file below its bucket's folder.

    def object_path(self, key: str) -> Path:
        return self.path / "s3" / "fedbench" / key

    def document(self, key: str) -> dict[str, Any]:
        """Return the content of a JSON object. Check it against the digest that it carries."""
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
        """Return the validated records of all committed rounds."""
        layout = self.layout(name)
        numbers = layout.committed_rounds(self.keys(name))
        assert numbers == list(range(len(numbers)))
        return [RoundRecord.model_validate(self.document(layout.marker(number))) for number in numbers]

    def stored_spec(self, name: str) -> FederationSpec:
        key = self.layout(name).spec
        return parse_spec(self.document(key), source=key)

    # Prefect: read from its database, which needs no server.

    def _prefect(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.path / "prefect" / "prefect.db", timeout=30)) as database:
            return database.execute(query, values).fetchall()

    def flow_runs(self, name: str) -> list[tuple[str, str]]:
        """Return (name, state) of the flow runs of the federation and its rounds."""
        query = "SELECT name, state_type FROM flow_run WHERE name = ? OR name LIKE ? ORDER BY name"
        return [(run, str(state)) for run, state in self._prefect(query, name, f"{name} · %")]

    def page_log(self, name: str) -> list[str]:
        """Return level and text of the lines on the page of the federation's own flow runs, as ``INFO round 1``."""
        query = "SELECT log.level, log.message FROM log JOIN flow_run ON flow_run.id = log.flow_run_id "
        found = self._prefect(query + "WHERE flow_run.name = ? ORDER BY log.timestamp", name)
        return [f"{logging.getLevelName(level)} {message}" for level, message in found]

    def artifact(self, key: str) -> tuple[str, Any]:
        """Return (type, data) of the newest Prefect artifact with this key."""
        query = "SELECT type, data FROM artifact WHERE key = ? ORDER BY created DESC LIMIT 1"
        ((kind, data),) = self._prefect(query, key)
        data = json.loads(data)
        return kind, json.loads(data) if isinstance(data, str) and kind == "table" else data

    # Processes.

    def processes(self) -> list[psutil.Process]:
        """Return the living processes of this home's runs, orphans too."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if process.environ().get(MARK) == self.mark:
                    found.append(process)
        return found

    def open_to_others(self) -> list[str]:
        """Return those files and folders of the home, itself included, that give other users any right."""
        found = [path for path in (self.path, *self.path.rglob("*")) if not path.is_symlink()]
        return [f"{path}: {path.stat().st_mode & 0o777:03o}" for path in found if path.stat().st_mode & 0o077]

    def remove_weights(self) -> None:
        """Remove the weights: pytest would keep hundreds of megabytes for its next runs. The logs stay."""
        for folder in ("cache", "s3"):
            shutil.rmtree(self.path / folder, ignore_errors=True)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C interrupt processes that start in this block, even if the tests ignore it (started with ``&``)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def assert_no_process_left(home: Home) -> None:
    # A loader's worker checks every five seconds whether its parent has died.
    eventually(lambda: not home.processes(), 15)
    left = [" ".join(process.cmdline()) for process in home.processes()]
    assert not left, left


def assert_consistent(home: Home, name: str, rounds: int) -> list[RoundRecord]:
    """Check a finished run's store. Return its records.

    Every round's record follows from the one before, and the store has just the weights that retention keeps.
    """
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
        assert (plan.server, plan.shared) == (before.server, before.shared)
        assert (plan.states or {}) == {name: before.states[name] for name in plan.cohort if name in before.states}
        assert [update.client for update in record.updates] == list(plan.cohort)
        assert {update.model for update in record.updates} == {before.model.sha256}
        assert {update.client: update.seed for update in record.updates} == plan.seeds
        assert record.dropped == ()
        assert before.committed < record.committed
    best = records[-1].decision.best_round
    assert json.loads(home.object_path(home.layout(name).best).read_bytes())["round"] == best
    layout, keys = home.layout(name), home.keys(name)
    kept = sorted({best, rounds - 1, rounds})
    states = {ref.key: ref for number in kept for ref in records[number].state_refs}
    first = {records[0].model.key} & states.keys()  # a client's first state may be the initial model (Ditto)
    models = {layout.global_weights(number) for number in kept}
    assert [key for key in keys if key.endswith("global.safetensors")] == sorted(models | first)
    for number in kept:
        content = home.object_path(layout.global_weights(number)).read_bytes()
        assert hashlib.sha256(content).hexdigest() == records[number].model.sha256
        assert len(content) == records[number].model.bytes
    assert [key for key in keys if layout.is_state(key)] == sorted(states.keys() - first)
    for key, ref in states.items():
        assert hashlib.sha256(home.object_path(key).read_bytes()).hexdigest() == ref.sha256
    assert [key for key in keys if "/updates/" in key or "/evaluations/" in key] == []
    assert spec.max_rounds == rounds
    return records


def digests(records: list[RoundRecord]) -> list[str]:
    """Return the sha256 of the global weights of each round."""
    return [record.model.sha256 for record in records]


def state_digests(records: list[RoundRecord]) -> list[dict[str, str]]:
    """Return the sha256 of each state that is current after each round, by its key below ``rounds/``."""
    return [{ref.key.rpartition("/rounds/")[2]: ref.sha256 for ref in record.state_refs} for record in records]


def own_figures(records: list[RoundRecord]) -> list[list[EvaluationRecord]]:
    """Return the figures of each client's own model by round, without the times."""
    return [[item.model_copy(update={"seconds": 0}) for item in record.personal] for record in records]


def assert_tracked_once(home: Home, name: str, status: str, records: list[RoundRecord]) -> Any:
    """Check that the federation has one MLflow run, in ``status``, with each round's points once. Return the run."""
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
        if not key.startswith(SYSTEM_METRICS):  # those have steps and times of their own
            assert all(point.timestamp == committed[point.step] for point in points)
    rounds = client.get_metric_history(runs[0].info.run_id, "round")
    assert sorted(point.step for point in rounds) == sorted(committed)
    return runs[0]
