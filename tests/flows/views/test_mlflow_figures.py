"""The figures of rounds and suites that are logged to MLflow."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from flows.views.mlflow_figures import round_figures
from infra.tracking.federation import Tracker
from tasks.spec.base import Sha256
from tasks.spec.plans import ClientFailure, WeightRef
from tasks.spec.records import Decision, Metrics, RoundRecord
from tests.records import client_info, evaluation_record, round_plan, round_record, update_record

SHA: Sha256 = "a" * 64
COMMITTED = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
WEIGHTS = WeightRef(key="federations/street/rounds/0003/global.safetensors", sha256=SHA, bytes=100)


def record(number: int = 3, *, evaluations: int = 1) -> RoundRecord:
    """Return a round of clients 1 and 2, in which client 3 was dropped."""
    plan = round_plan("1", "2", "3", round=max(number, 1), model=WEIGHTS, created=COMMITTED)
    updates = tuple(
        update_record(
            client,
            round=max(number, 1),
            weights=WEIGHTS,
            train_size=size,
            train_loss=loss,
            seconds=2.0,
            train_seconds=1.5,
            bytes_down=100,
        )
        for client, size, loss in (("1", 10, 4.0), ("2", 30, 2.0))
    )
    groups = (("1", "2", "3"),) if evaluations == 1 else (("1",), ("2", "3"))
    return round_record(
        number,
        plan=plan if number else None,
        clients=tuple(client_info(client) for client in ("1", "2", "3")),
        updates=updates if number else (),
        dropped=(ClientFailure(client="3", phase="request_update", kind="client-error", reason="NaN"),),
        model=WEIGHTS,
        evaluations=tuple(
            evaluation_record(
                *clients,
                loss=3.0 + index,
                map50_voc10=0.25,
                map50_voc07=0.375,
                map_coco=0.125,
                per_class={"chair": 0.25, "gas/tank": None},
                score_threshold=0.05,
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
        committed=COMMITTED,
    )


# Names of classes, several of which once got the same name in MLflow.
EQUAL_ONCE_CLEANED = (
    *("car!", "car?", "car_", "car_-xe3214ece4878", "car\n", "car.", " car", "car"),
    *("y" * 100, "y" * 101, "y" * 250, "y" * 300),
    *("$", "[", "_", "", ".", "..", "/"),
)


def test_the_best_value_of_the_chosen_metric_is_logged_too() -> None:
    other = Decision(stop=False, best_round=1, best_map50_voc10=0.3, best_metric="map_coco", best_value=0.0)
    metrics = round_figures(record().model_copy(update={"decision": other})).figures
    best = {name: value for name, value in metrics.items() if name.startswith("best/")}
    assert best == {"best/round": 1.0, "best/map50_voc10": 0.3, "best/map_coco": 0.0}


def test_the_section_of_the_maps_is_the_first_on_mlflows_page() -> None:
    """MLflow sorts the sections of charts by name; a name without a slash is in a section that comes last."""
    sections = sorted({name.rpartition("/")[0] for name in round_figures(record(evaluations=2)).figures if "/" in name})
    assert sections[0] == "average_precision"


def test_a_round_has_these_figures() -> None:
    metrics = round_figures(record()).figures
    assert metrics == {
        "average_precision/map50_voc10": 0.25,
        "average_precision/map_coco": 0.125,
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


def test_classes_with_names_equal_once_cleaned_have_different_metrics(tmp_path: Path) -> None:
    """They differ in the database too, and do not depend on the other classes."""
    per_class = {name: index / 10 for index, name in enumerate(EQUAL_ONCE_CLEANED)}
    unweighted = {f"per_class/{name}": value for name, value in per_class.items()}
    metrics = record().metrics.model_copy(update={"per_class": per_class, "unweighted": unweighted})
    tracker = Tracker.open(
        uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="streets", artifact_location=str(tmp_path / "artifacts"),
        federation="street", spec_digest=SHA, params={}, spec_yaml="", tags={},
    )  # fmt: skip
    tracker.log_round(round_figures(record().model_copy(update={"metrics": metrics})))
    with tracker.answering() as client:
        found = client.get_run(tracker.run_id).data.metrics
    for prefix in ("class/", "unweighted/per_class_"):
        values = [value for key, value in found.items() if key.startswith(prefix)]
        assert sorted(values) == sorted(per_class.values())
    for name, value in per_class.items():
        alone = record().model_copy(update={"metrics": metrics.model_copy(update={"per_class": {name: value}})})
        (key,) = (key for key in round_figures(alone).figures if key.startswith("class/"))
        assert found[key] == value


def test_figures_of_the_initial_model_and_of_two_test_sets() -> None:
    initial = round_figures(record(0)).figures
    assert "train/learning_rate" not in initial
    assert not [name for name in initial if name.startswith("client/")]
    split = round_figures(record(evaluations=2)).figures
    assert [split[f"client/{client}/test_loss"] for client in "123"] == [3.0, 4.0, 4.0]
    of_one = {name: value for name, value in split.items() if name.startswith("client/3/")}
    assert of_one == {
        "client/3/test_loss": 4.0,
        "client/3/map50_voc10": 0.25,
        "client/3/map50_voc07": 0.375,
        "client/3/map_coco": 0.125,
        "client/3/recall": 0.5,
    }
