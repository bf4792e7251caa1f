"""What MLflow's page shows of a run: its experiment's mode, data sets, description, origin and system metrics."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pytest

from infra.tracking import origin
from infra.tracking.cell import CELL_VARIABLE, CellRun, this_cell
from infra.tracking.client import client_at, experiment_named
from infra.tracking.data_sets import DataSet
from infra.tracking.federation import SYSTEM_METRICS, Tracker, find_tracker
from infra.tracking.origin import origin_tags
from infra.tracking.system_metrics import SystemMetrics
from tests.infra.tracking.test_federation import open_tracker
from tests.waiting import eventually

KIND = "mlflow.experimentKind"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "custom_model_development"),
        ("no_inferred_type", "custom_model_development"),
        ("genai_development_inferred", "custom_model_development"),
        ("genai_development", "genai_development"),  # a person has chosen it
    ],
)
def test_an_experiment_opens_as_model_training(uri: str, before: str | None, after: str) -> None:
    client = client_at(uri)
    old = client.create_experiment("old", tags={} if before is None else {KIND: before})
    assert experiment_named(client, "old", None) == old
    assert client.get_experiment(old).tags[KIND] == after
    assert client.get_experiment(experiment_named(client, "new", None)).tags[KIND] == "custom_model_development"


def data_set(name: str, images: int = 3, context: str = "training") -> DataSet:
    return DataSet(name, context, "d" * 64, {"images": images}, {})


def inputs(tracker: Tracker) -> list[tuple[str, str, str]]:
    found = tracker._client.get_run(tracker.run_id).inputs
    assert found is not None
    return sorted((item.dataset.name, item.tags[0].value, str(item.dataset.profile)) for item in found.dataset_inputs)


def test_a_resumed_run_has_each_data_set_once(uri: str) -> None:
    first, second = data_set("street5 client 1"), data_set("street5 test", 9, "test")
    tracker = open_tracker(uri)
    tracker.log_data([first])
    tracker.log_data([first, second])
    open_tracker(uri).log_data([first, second, data_set("street5 client 1", 4)])
    assert inputs(tracker) == [
        ("street5 client 1", "training", '{"images": 3}'),
        ("street5 test", "test", '{"images": 9}'),
    ]
    other = open_tracker(uri, federation="street-2")
    other.log_data([first])
    assert [name for name, *_ in inputs(other)] == ["street5 client 1"]


def test_a_description_is_replaced_until_a_person_edits_it(uri: str) -> None:
    tracker = open_tracker(uri)

    def note() -> str:
        return str(tracker._client.get_run(tracker.run_id).data.tags["mlflow.note.content"])

    for text in ("round 1", "round 2", "x" * 9000):
        tracker.describe(text)
        assert note() == text[:8000]
    tracker._client.set_tag(tracker.run_id, "mlflow.note.content", "my words")
    tracker.describe("round 3")
    assert note() == "my words"


def test_only_a_new_run_gets_the_tags_of_its_origin(uri: str) -> None:
    tracker = open_tracker(uri, title="laptop · seed 1", origin=lambda: origin_tags("fedbench run", "LOCAL"))
    open_tracker(uri, origin=lambda: {"mlflow.source.name": "another"}).close("FINISHED")
    run = tracker._client.get_run(tracker.run_id)
    assert run.info.run_name == "laptop · seed 1"
    assert run.data.tags["mlflow.source.name"] == "fedbench run"
    assert run.data.tags["mlflow.source.type"] == "LOCAL"
    assert run.info.user_id == run.data.tags["mlflow.user"] != "unknown"


def test_the_commit_is_that_of_a_checkout_of_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(["git", *identity, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "one")
    monkeypatch.setattr(origin, "_SOURCES", tmp_path)
    assert origin_tags("x", "JOB")["mlflow.source.git.commit"] == git("rev-parse", "HEAD")
    (tmp_path / "lib").mkdir()  # a package that is installed inside another project's checkout
    monkeypatch.setattr(origin, "_SOURCES", tmp_path / "lib")
    assert "mlflow.source.git.commit" not in origin_tags("x", "JOB")


def test_a_cells_process_reads_what_its_suite_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CELL_VARIABLE, raising=False)
    assert this_cell() is None
    cell = CellRun("laptop · seed 1", {"fedbench.cell": "laptop.s1"}, "abc")
    monkeypatch.setenv(CELL_VARIABLE, cell.variables()[CELL_VARIABLE])
    assert this_cell() == cell
    assert cell.all_tags == {"fedbench.cell": "laptop.s1", "mlflow.parentRunId": "abc"}


def test_system_metrics_of_a_resumed_run_go_on_and_no_step_is_doubled(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    tracker = open_tracker(uri)

    def steps() -> list[int]:
        key = f"{SYSTEM_METRICS}cpu_utilization_percentage"
        return [point.step for point in tracker._client.get_metric_history(tracker.run_id, key)]

    before = 0
    for _ in range(2):
        metrics = SystemMetrics(uri, tracker.run_id)
        assert eventually(lambda: len(steps()) > before)  # noqa: B023
        metrics.stop()
        before = len(steps())
    assert set(Counter(steps()).values()) == {1}
    assert steps() == list(range(len(steps())))


def test_a_run_is_found_without_opening_it(uri: str) -> None:
    tracker = open_tracker(uri)
    tracker.close("FINISHED")
    found = find_tracker(uri, "streets", "street")
    assert found is not None
    assert found.run_id == tracker.run_id
    assert tracker._client.get_run(tracker.run_id).info.status == "FINISHED"
    assert find_tracker(uri, "streets", "nobody") is None
