"""Tracking on a real SQLite database and a folder of artifacts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
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
from infra.tracking.client import (
    TAG_FEDERATION,
    client_at,
    experiment_named,
    metric_part,
    mlflow_environment,
    page_url,
)
from infra.tracking.federation import (
    TAG_FLOW_RUN_ID,
    TAG_SPEC_DIGEST,
    TAG_VERSION,
    EndStatus,
    RoundFigures,
    Tracker,
    find_page,
)
from tests.infra.tracking.lookup import find_run

SHA = "a" * 64
COMMITTED = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)


def open_tracker(uri: str, **changes: Any) -> Tracker:
    arguments: dict[str, Any] = {
        "uri": uri,
        "experiment": "streets",
        "artifact_location": str(Path(uri.removeprefix("sqlite:///")).parent / "artifacts"),
        "federation": "street",
        "spec_digest": SHA,
        "params": {"max_rounds": 3, "data.kind": "synthetic", "long": "x" * 7000},
        "spec_yaml": "max_rounds: 3\n",
        "tags": {TAG_FLOW_RUN_ID: "f-1"},
    }
    return Tracker.open(**(arguments | changes))


def logged(number: int, figures: Mapping[str, float | None]) -> RoundFigures:
    return RoundFigures(number, datetime.fromtimestamp(number, UTC), figures)


def points(tracker: Tracker, key: str) -> list[tuple[int, int, float]]:
    history = tracker._client.get_metric_history(tracker.run_id, key)
    return [(point.step, point.timestamp, point.value) for point in history]


def artifact(uri: str, tracker: Tracker, path: str) -> bytes:
    folder = Path(uri.removeprefix("sqlite:///")).parent / "artifacts" / tracker.run_id / "artifacts"
    return (folder / path).read_bytes()


def test_importing_tracking_does_not_import_mlflow() -> None:
    code = "import sys, infra.tracking.federation; sys.exit('mlflow' in sys.modules or 'boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_opening_creates_the_run_with_parameters_tags_and_specification(uri: str) -> None:
    tracker = open_tracker(uri)
    run = tracker._client.get_run(tracker.run_id)
    assert (run.info.run_name, run.info.status) == ("street", "RUNNING")
    assert run.data.params["max_rounds"] == "3"
    assert run.data.params["long"] == "x" * 6000
    tags = run.data.tags
    assert (tags[TAG_FEDERATION], tags[TAG_SPEC_DIGEST]) == ("street", SHA)
    assert tags[TAG_FLOW_RUN_ID] == "f-1"
    assert tags[TAG_VERSION]
    assert artifact(uri, tracker, "spec.yaml") == b"max_rounds: 3\n"


def test_a_killed_run_is_reopened_and_extended(uri: str) -> None:
    first = open_tracker(uri)
    first.close("KILLED")
    second = open_tracker(
        uri,
        spec_digest="b" * 64,
        params={"max_rounds": 5, "data.kind": "synthetic", "new": 1},
        spec_yaml="max_rounds: 5\n",
        tags={TAG_FLOW_RUN_ID: "f-2"},
    )
    assert (second.run_id, second.experiment_id) == (first.run_id, first.experiment_id)
    run = second._client.get_run(second.run_id)
    assert run.info.status == "RUNNING"
    assert (run.data.params["max_rounds"], run.data.params["new"]) == ("3", "1")
    assert run.data.tags["fedbench.max_rounds"] == "5"
    assert "fedbench.data.kind" not in run.data.tags
    assert run.data.tags[TAG_SPEC_DIGEST] == "b" * 64
    assert run.data.tags[TAG_FLOW_RUN_ID] == "f-2"
    assert artifact(uri, second, "spec.yaml") == b"max_rounds: 5\n"


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_closing_ends_the_run(uri: str, status: EndStatus) -> None:
    tracker = open_tracker(uri)
    tracker.close(status)
    assert tracker._client.get_run(tracker.run_id).info.status == status


def test_another_federation_has_a_run_of_its_own(uri: str) -> None:
    street, other = open_tracker(uri), open_tracker(uri, federation="street-2")
    assert street.experiment_id == other.experiment_id
    assert find_run(uri, "streets", "street") == street.run_id
    assert find_run(uri, "streets", "street-2") == other.run_id
    assert find_run(uri, "streets", "street-3") is None
    assert find_run(uri, "nowhere", "street") is None


def test_page(uri: str) -> None:
    tracker = open_tracker(uri)
    run = f"{tracker.experiment_id}/runs/{tracker.run_id}"
    expected = f"http://h:5000/#/experiments/{run}?workflowType=machine_learning"
    assert page_url("http://h:5000/", tracker.experiment_id, tracker.run_id) == expected
    assert find_page(uri, "streets", "street", "http://h:5000") == expected
    assert find_page(uri, "streets", "nobody", "http://h:5000") is None


def test_logging_a_round_again_adds_nothing(uri: str) -> None:
    tracker = open_tracker(uri)
    metrics = {"global/loss": 2.0, "a/none": None, "a/nan": float("nan"), "a/inf": float("inf")}
    tracker.log_round(logged(1, metrics))
    tracker.log_round(logged(1, metrics))
    open_tracker(uri).log_round(logged(1, metrics))
    tracker.log_round(logged(2, {"global/loss": 1.0}))
    assert points(tracker, "global/loss") == [(1, 1000, 2.0), (2, 2000, 1.0)]
    assert set(tracker._client.get_run(tracker.run_id).data.metrics) == {"round", "global/loss"}
    assert tracker.logged_rounds() == {1, 2}


def test_more_metrics_than_a_batch_takes(uri: str) -> None:
    tracker = open_tracker(uri)
    tracker.log_round(logged(1, {f"client/{number}/loss": float(number) for number in range(1500)}))
    assert len(tracker._client.get_run(tracker.run_id).data.metrics) == 1501


def test_missing_rounds_are_back_filled_with_their_own_time(uri: str) -> None:
    rounds = [logged(number, {"global/loss": 3.0}) for number in range(4)]
    tracker = open_tracker(uri)
    assert tracker.logged_rounds() == set()
    tracker.log_round(rounds[0])
    tracker.log_round(rounds[2])
    assert tracker.backfill(rounds) == [1, 3]
    assert tracker.backfill(rounds) == []
    assert points(tracker, "global/loss") == [(number, 1000 * number, 3.0) for number in range(4)]


def test_a_round_has_the_same_time_on_every_machine() -> None:
    aware = RoundFigures(1, COMMITTED, {})
    naive = RoundFigures(1, COMMITTED.replace(tzinfo=None), {})
    assert aware.milliseconds == naive.milliseconds == round(COMMITTED.timestamp() * 1000)


ORDINARY = ("car", "traffic light", "gas-tank", "v1.2", "交通灯", "straße", "a:b", "x" * 100, "-x", "car-x12")


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_name_is_its_own_part_of_a_metrics_name(name: str) -> None:
    assert metric_part(name) == name


@given(st.lists(st.text("ab_.!? -/x\n", max_size=8), unique=True, max_size=8))
def test_different_names_have_different_parts_of_metrics_names(names: list[str]) -> None:
    parts = [metric_part(name) for name in names]
    assert len(set(parts)) == len(names)
    assert all(re.fullmatch(r"[\w.\- :]{1,100}", part) and part.strip(". ") == part for part in parts)
    assert [metric_part(part) == part for part in parts] == [
        part == name for part, name in zip(parts, names, strict=True)
    ]


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


def test_concurrent_runs_create_one_experiment(uri: str) -> None:
    client, together = client_at(uri), Barrier(4)

    def create() -> str:
        together.wait()
        return experiment_named(client, "raced", None)

    with ThreadPoolExecutor(4) as pool:
        found = [future.result() for future in [pool.submit(create) for _ in range(4)]]
    assert len(set(found)) == 1


def test_the_error_about_a_deleted_experiment_names_the_remedy(uri: str) -> None:
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
    assert find_run(uri, "streets", "street") is not None


def test_environment() -> None:
    environment = mlflow_environment("http://127.0.0.1:9000", "us-east-1", "key", "secret")
    assert environment["MLFLOW_S3_ENDPOINT_URL"] == "http://127.0.0.1:9000"
    assert (environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]) == ("key", "secret")
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert "MLFLOW_S3_ENDPOINT_URL" not in mlflow_environment(None, "us-east-1", "key", "secret")
