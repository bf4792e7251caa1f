"""What a run's report gives to MLflow while the rounds go on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flows.deployed import NamedServices
from flows.report import RunReport
from infra import tracking
from infra.settings import Settings
from tasks.spec.federation import FederationSpec
from tasks.spec.records import Decision, Environment, Metrics, RoundRecord, WeightRef

SPEC = FederationSpec(max_rounds=2)


def record_of(number: int) -> RoundRecord:
    return RoundRecord(
        federation="street",
        round=number,
        spec_digest=SPEC.digest,
        clients=(),
        model=WeightRef(key="k", sha256="a" * 64, bytes=1),
        evaluations=(),
        metrics=Metrics(map50_voc10=0.1),
        decision=Decision(stop=False, best_round=number),
        seconds={},
        environment=Environment(fedbench="0", python="3", torch="2", torchvision="0", cpu="x", threads=1),
        committed=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number),
    )


def test_a_federation_that_went_back_gets_a_run_without_the_rounds_put_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MLflow's artifacts
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    settings = Settings(home=tmp_path, prefect_api_url="http://127.0.0.1:9/api", mlflow_tracking_uri=uri)

    def points(run: str | None) -> list[tuple[int, float]]:
        assert run is not None
        with tracking.answering(uri) as client:
            return [(point.step, point.timestamp) for point in client.get_metric_history(run, "round")]

    def opened(*records: RoundRecord) -> str | None:
        report = RunReport("street", SPEC, settings, NamedServices(settings), tmp_path / "street")
        report.open(records)
        report.close("KILLED")
        return tracking.find_run(uri, settings.mlflow_experiment, "street")

    records = [record_of(number) for number in range(3)]
    first = opened(*records)
    assert opened(*records) == opened(*records[:3]) == first
    # Round 2 was put aside, and done again.
    again = records[2].model_copy(update={"committed": records[2].committed + timedelta(days=1)})
    second = opened(records[0], records[1], again)
    assert second != first
    assert points(second) == [(point.round, 1000 * point.committed.timestamp()) for point in (*records[:2], again)]
    assert [step for step, _ in points(first)] == [0, 1, 2]
    with tracking.answering(uri) as client:
        assert client.get_run(first).info.run_name == "street (superseded)"
        assert client.get_run(first).data.tags[tracking.TAG_SUPERSEDED] == "street"
    third = opened(records[0])  # put aside, and nothing done since
    assert third not in (first, second)
    assert points(third) == [(0, 1000 * records[0].committed.timestamp())]


def test_rounds_are_logged_beside_the_next_ones_and_all_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MLflow's artifacts
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    settings = Settings(home=tmp_path, prefect_api_url="http://127.0.0.1:9/api", mlflow_tracking_uri=uri)
    report = RunReport("street", SPEC, settings, NamedServices(settings), tmp_path / "street")
    report.open([])
    for number in range(3):
        report.round_committed(record_of(number))
    report.close("KILLED")
    run = tracking.find_run(uri, settings.mlflow_experiment, "street")
    assert run is not None
    with tracking.answering(uri) as client:
        assert [point.step for point in client.get_metric_history(run, "round")] == [0, 1, 2]
        assert client.get_run(run).info.status == "KILLED"
