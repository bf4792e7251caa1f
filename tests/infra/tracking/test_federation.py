"""Tracking on a real SQLite database and a folder of artifacts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from infra.errors import InfraError, TrackingUnavailable
from infra.tracking import federation as tracking
from infra.tracking.federation import Tracker, metric_part, mlflow_environment, page_url, round_metrics
from tasks.spec.base import Sha256
from tasks.spec.records import (
    ClientFailure,
    ClientInfo,
    Decision,
    Environment,
    EvaluationRecord,
    Metrics,
    RoundPlan,
    RoundRecord,
    UpdateRecord,
    WeightRef,
)

SHA: Sha256 = "a" * 64
COMMITTED = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
WEIGHTS = WeightRef(key="federations/street/rounds/0003/global.safetensors", sha256=SHA, bytes=100)


def record(number: int = 3, *, evaluations: int = 1) -> RoundRecord:
    """A round of clients 1 and 2, in which client 3 was dropped."""
    plan = RoundPlan(
        federation="street",
        round=max(number, 1),
        spec_digest=SHA,
        model=WEIGHTS,
        draws=(),
        cohort=("1", "2", "3"),
        shards=(("1",), ("2",), ("3",)),
        seeds={"1": 1, "2": 2, "3": 3},
        learning_rate=0.001,
        created=COMMITTED,
    )
    updates = tuple(
        UpdateRecord(
            federation="street",
            round=max(number, 1),
            client=client,
            spec_digest=SHA,
            model=SHA,
            seed=1,
            weights=WEIGHTS,
            train_size=size,
            train_loss=loss,
            steps=1,
            seconds=2.0,
            train_seconds=1.5,
            bytes_down=100,
            host="h",
            device="cpu",
        )
        for client, size, loss in (("1", 10, 4.0), ("2", 30, 2.0))
    )
    groups = (("1", "2", "3"),) if evaluations == 1 else (("1",), ("2", "3"))
    return RoundRecord(
        federation="street",
        round=number,
        spec_digest=SHA,
        plan=plan if number else None,
        clients=tuple(
            ClientInfo(
                client=client,
                train_size=10,
                test_size=5,
                test_digest=SHA,
                class_counts={},
                host="h",
                device="cpu",
            )
            for client in ("1", "2", "3")
        ),
        updates=updates if number else (),
        dropped=(ClientFailure(client="3", phase="request_update", kind="client-error", reason="NaN"),),
        model=WEIGHTS,
        evaluations=tuple(
            EvaluationRecord(
                clients=clients,
                test_digest=SHA,
                test_size=5,
                loss=3.0 + index,
                map50_voc10=0.25,
                map50_voc07=0.375,
                map50_coco=None,
                map_coco=0.125,
                recall=0.5,
                per_class={"chair": 0.25, "gas/tank": None},
                score_threshold=0.05,
                seconds=1.0,
            )
            for index, clients in enumerate(groups)
        ),
        metrics=Metrics(
            train_loss=2.5,
            loss=3.0,
            map50_voc10=0.25,
            map_coco=0.125,
            recall=None,
            per_class={"street/chair": 0.25, "gastank": None},
            per_class_coco={"street/chair": 0.125, "gastank": None},
            per_class_recall={"street/chair": 0.5, "gastank": None},
            unweighted={"loss": 3.5},
        ),
        decision=Decision(stop=False, best_round=2, best_map50_voc10=0.3),
        seconds={"request_update": 4.0, "stop_and_eval": 1.0},
        bytes_up=200,
        bytes_down=300,
        environment=Environment(fedbench="0", python="3", torch="2", torchvision="0", cpu="x", threads=1),
        committed=COMMITTED,
    )


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's schema takes seconds to create: once, then copied."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    assert tracking.find_run(f"sqlite:///{path}", "none", "none") is None
    return path


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path) -> str:
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    return f"sqlite:///{tmp_path}/mlflow.db"


def open_tracker(uri: str, **changes: Any) -> Tracker:
    arguments: dict[str, Any] = {
        "uri": uri,
        "experiment": "streets",
        "artifact_location": str(Path(uri.removeprefix("sqlite:///")).parent / "artifacts"),
        "federation": "street",
        "spec_digest": SHA,
        "params": {"max_rounds": 3, "data.kind": "synthetic", "long": "x" * 7000},
        "spec_yaml": "max_rounds: 3\n",
        "tags": {tracking.TAG_FLOW_RUN_ID: "f-1"},
    }
    return Tracker.open(**(arguments | changes))


def points(tracker: Tracker, key: str) -> list[tuple[int, int, float]]:
    history = tracker._client.get_metric_history(tracker.run_id, key)
    return [(point.step, point.timestamp, point.value) for point in history]


def artifact(uri: str, tracker: Tracker, path: str) -> bytes:
    folder = Path(uri.removeprefix("sqlite:///")).parent / "artifacts" / tracker.run_id / "artifacts"
    return (folder / path).read_bytes()


def test_import_is_cheap() -> None:
    code = "import sys, infra.tracking.federation; sys.exit('mlflow' in sys.modules or 'boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_open_creates_the_run_with_parameters_tags_and_specification(uri: str) -> None:
    tracker = open_tracker(uri)
    run = tracker._client.get_run(tracker.run_id)
    assert (run.info.run_name, run.info.status) == ("street", "RUNNING")
    assert run.data.params["max_rounds"] == "3"
    assert run.data.params["long"] == "x" * 6000
    tags = run.data.tags
    assert (tags[tracking.TAG_FEDERATION], tags[tracking.TAG_SPEC_DIGEST]) == ("street", SHA)
    assert tags[tracking.TAG_FLOW_RUN_ID] == "f-1"
    assert tags[tracking.TAG_VERSION]
    assert artifact(uri, tracker, "spec.yaml") == b"max_rounds: 3\n"


def test_a_killed_run_is_reopened_and_extended(uri: str) -> None:
    first = open_tracker(uri)
    first.close("KILLED")
    second = open_tracker(
        uri,
        spec_digest="b" * 64,
        params={"max_rounds": 5, "data.kind": "synthetic", "new": 1},
        spec_yaml="max_rounds: 5\n",
        tags={tracking.TAG_FLOW_RUN_ID: "f-2"},
    )
    assert (second.run_id, second.experiment_id) == (first.run_id, first.experiment_id)
    run = second._client.get_run(second.run_id)
    assert run.info.status == "RUNNING"
    assert (run.data.params["max_rounds"], run.data.params["new"]) == ("3", "1")
    assert run.data.tags["fedbench.max_rounds"] == "5"
    assert "fedbench.data.kind" not in run.data.tags
    assert run.data.tags[tracking.TAG_SPEC_DIGEST] == "b" * 64
    assert run.data.tags[tracking.TAG_FLOW_RUN_ID] == "f-2"
    assert artifact(uri, second, "spec.yaml") == b"max_rounds: 5\n"


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_close_ends_the_run(uri: str, status: tracking.EndStatus) -> None:
    tracker = open_tracker(uri)
    tracker.close(status)
    assert tracker._client.get_run(tracker.run_id).info.status == status


def test_another_federation_has_a_run_of_its_own(uri: str) -> None:
    street, other = open_tracker(uri), open_tracker(uri, federation="street-2")
    assert street.experiment_id == other.experiment_id
    assert tracking.find_run(uri, "streets", "street") == street.run_id
    assert tracking.find_run(uri, "streets", "street-2") == other.run_id
    assert tracking.find_run(uri, "streets", "street-3") is None
    assert tracking.find_run(uri, "nowhere", "street") is None


def test_page(uri: str) -> None:
    tracker = open_tracker(uri)
    expected = f"http://h:5000/#/experiments/{tracker.experiment_id}/runs/{tracker.run_id}"
    assert page_url("http://h:5000/", tracker.experiment_id, tracker.run_id) == expected
    assert tracking.find_page(uri, "streets", "street", "http://h:5000") == expected
    assert tracking.find_page(uri, "streets", "nobody", "http://h:5000") is None


def test_a_round_logged_again_doubles_nothing(uri: str) -> None:
    tracker = open_tracker(uri)
    metrics = {"global/loss": 2.0, "a/none": None, "a/nan": float("nan"), "a/inf": float("inf")}
    tracker.log_round(1, 1000, metrics)
    tracker.log_round(1, 1000, metrics)
    open_tracker(uri).log_round(1, 1000, metrics)
    tracker.log_round(2, 2000, {"global/loss": 1.0})
    assert points(tracker, "global/loss") == [(1, 1000, 2.0), (2, 2000, 1.0)]
    assert set(tracker._client.get_run(tracker.run_id).data.metrics) == {"round", "global/loss"}
    assert tracker.logged_rounds() == {1, 2}


def test_more_metrics_than_a_batch_takes(uri: str) -> None:
    tracker = open_tracker(uri)
    tracker.log_round(1, 1000, {f"client/{number}/loss": float(number) for number in range(1500)})
    assert len(tracker._client.get_run(tracker.run_id).data.metrics) == 1501


def test_missing_rounds_are_back_filled_with_their_own_time(uri: str) -> None:
    records = [record(number).model_dump(mode="json") for number in range(4)]
    tracker = open_tracker(uri)
    assert tracker.logged_rounds() == set()
    tracker.log_record(records[0])
    tracker.log_record(records[2])
    assert tracker.backfill(records) == [1, 3]
    assert tracker.backfill(records) == []
    milliseconds = round(COMMITTED.timestamp() * 1000)
    assert points(tracker, "global/loss") == [(number, milliseconds, 3.0) for number in range(4)]


def test_a_dumped_record_has_one_time_in_either_mode(uri: str) -> None:
    tracker = open_tracker(uri)
    tracker.log_record(record(1).model_dump(mode="json"))
    tracker.log_record(record(1).model_dump())
    assert len(points(tracker, "global/loss")) == 1


def test_the_best_is_logged_by_the_measure_of_choice_too() -> None:
    other = Decision(stop=False, best_round=1, best_map50_voc10=0.3, best_metric="map_coco", best_value=0.0)
    metrics = round_metrics(record().model_copy(update={"decision": other}).model_dump(mode="json"))
    best = {name: value for name, value in metrics.items() if name.startswith("best/")}
    assert best == {"best/round": 1.0, "best/map50_voc10": 0.3, "best/map_coco": 0.0}


def test_round_metrics() -> None:
    metrics = round_metrics(record().model_dump(mode="json"))
    assert metrics == {
        "train/loss": 2.5,
        "train/learning_rate": 0.001,
        "global/loss": 3.0,
        "global/map50_voc10": 0.25,
        "global/map_coco": 0.125,
        "unweighted/loss": 3.5,
        "class/street_chair-x3f7584a59ed8": 0.25,
        "class_coco/street_chair-x3f7584a59ed8": 0.125,
        "class_recall/street_chair-x3f7584a59ed8": 0.5,
        "best/round": 2.0,
        "best/map50_voc10": 0.3,
        "bytes/up": 200.0,
        "bytes/down": 300.0,
        "seconds/request_update": 4.0,
        "seconds/stop_and_eval": 1.0,
        "seconds/round": 5.0,
        "clients/ready": 3.0,
        "clients/cohort": 3.0,
        "clients/updates": 2.0,
        "clients/dropped": 1.0,
        "client/1/loss": 4.0,
        "client/1/images": 10.0,
        "client/1/seconds": 2.0,
        "client/2/loss": 2.0,
        "client/2/images": 30.0,
        "client/2/seconds": 2.0,
    }


ORDINARY = ("car", "traffic light", "gas-tank", "v1.2", "交通灯", "straße", "a:b", "x" * 100, "-x", "car-x12")
# Each of these was the name of another class in MLflow.
EQUAL_ONCE_CLEANED = (
    *("car!", "car?", "car_", "car_-xe3214ece4878", "car\n", "car.", " car", "car"),
    *("y" * 100, "y" * 101, "y" * 250, "y" * 300),
    *("$", "[", "_", "", ".", "..", "/"),
)


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_name_is_its_own_part_of_a_metrics_name(name: str) -> None:
    assert metric_part(name) == name


def test_classes_that_are_equal_once_cleaned_are_metrics_of_their_own(uri: str) -> None:
    """In the database too, and whichever classes there are beside them."""
    per_class = {name: index / 10 for index, name in enumerate(EQUAL_ONCE_CLEANED)}
    unweighted = {f"per_class/{name}": value for name, value in per_class.items()}
    metrics = record().metrics.model_copy(update={"per_class": per_class, "unweighted": unweighted})
    logged = record().model_copy(update={"metrics": metrics}).model_dump(mode="json")
    tracker = open_tracker(uri)
    tracker.log_record(logged)
    found = tracker._client.get_run(tracker.run_id).data.metrics
    for prefix in ("class/", "unweighted/per_class_"):
        values = [value for key, value in found.items() if key.startswith(prefix)]
        assert sorted(values) == sorted(per_class.values())
    for name, value in per_class.items():
        alone = {**logged, "metrics": {**logged["metrics"], "per_class": {name: value}}}
        (key,) = (key for key in round_metrics(alone) if key.startswith("class/"))
        assert found[key] == value


@given(st.lists(st.text("ab_.!? -/x\n", max_size=8), unique=True, max_size=8))
def test_parts_of_metrics_names_are_as_many_as_the_names(names: list[str]) -> None:
    parts = [metric_part(name) for name in names]
    assert len(set(parts)) == len(names)
    assert all(re.fullmatch(r"[\w.\- :]{1,100}", part) and part.strip(". ") == part for part in parts)
    assert [metric_part(part) == part for part in parts] == [
        part == name for part, name in zip(parts, names, strict=True)
    ]


def test_round_metrics_of_the_initial_model_and_of_two_test_sets() -> None:
    initial = round_metrics(record(0).model_dump())
    assert "train/learning_rate" not in initial
    assert not [name for name in initial if name.startswith("client/")]
    split = round_metrics(record(evaluations=2).model_dump())
    assert [split[f"client/{client}/test_loss"] for client in "123"] == [3.0, 4.0, 4.0]
    of_one = {name: value for name, value in split.items() if name.startswith("client/3/")}
    assert of_one == {
        "client/3/test_loss": 4.0,
        "client/3/map50_voc10": 0.25,
        "client/3/map50_voc07": 0.375,
        "client/3/map_coco": 0.125,
        "client/3/recall": 0.5,
    }


def test_artifacts_and_references(uri: str) -> None:
    tracker = open_tracker(uri)
    tracker.log_artifact_bytes("tables/rounds.csv", b"old")
    tracker.log_artifact_bytes("tables/rounds.csv", b"new")
    assert artifact(uri, tracker, "tables/rounds.csv") == b"new"
    tracker.log_figure("plots/loss.png", Figure(figsize=(1, 1)))
    assert artifact(uri, tracker, "plots/loss.png").startswith(b"\x89PNG")
    tracker.log_reference("best", "s3://fedbench/x.safetensors", SHA)
    assert json.loads(artifact(uri, tracker, "best.json")) == {
        "uri": "s3://fedbench/x.safetensors",
        "sha256": SHA,
    }
    tags = tracker._client.get_run(tracker.run_id).data.tags
    assert tags["fedbench.best.uri"] == "s3://fedbench/x.safetensors"
    assert tags["fedbench.best.sha256"] == SHA


def test_many_at_once_create_one_experiment(uri: str) -> None:
    client, together = tracking._client(uri), Barrier(4)

    def create() -> str:
        together.wait()
        return tracking.experiment_named(client, "raced", None)

    with ThreadPoolExecutor(4) as pool:
        found = [future.result() for future in [pool.submit(create) for _ in range(4)]]
    assert len(set(found)) == 1


def test_a_deleted_experiment_names_the_remedy(uri: str) -> None:
    tracker = open_tracker(uri)
    tracker._client.delete_experiment(tracker.experiment_id)
    with pytest.raises(TrackingUnavailable, match=r"'streets' was deleted: restore it .* mlflow_experiment"):
        open_tracker(uri)


def test_an_unreachable_server_is_tracking_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingUnavailable, match=r"MLflow at http://\*\*\*@127\.0\.0\.1:9 failed: .*mlflow_tra"):
        open_tracker("http://me:secret@127.0.0.1:9", artifact_location=None)
    assert issubclass(TrackingUnavailable, InfraError)


def test_an_unreachable_artifact_store_is_tracking_unavailable(uri: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrackingUnavailable, match=r"failed: .*file"):
        open_tracker(uri, artifact_location=str(tmp_path / "file" / "artifacts"))
    assert tracking.find_run(uri, "streets", "street") is not None


def test_environment() -> None:
    environment = mlflow_environment("http://127.0.0.1:9000", "us-east-1", "key", "secret")
    assert environment["MLFLOW_S3_ENDPOINT_URL"] == "http://127.0.0.1:9000"
    assert (environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]) == ("key", "secret")
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert "MLFLOW_S3_ENDPOINT_URL" not in mlflow_environment(None, "us-east-1", "key", "secret")
