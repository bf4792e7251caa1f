"""The figures of an evaluation in records, in means over clients, and in the decision to stop."""

from __future__ import annotations

import pytest

from tasks.decide import decide_stop
from tasks.errors import SpecError
from tasks.metrics.over_clients import aggregate_metrics
from tasks.spec.base import parse
from tasks.spec.federation import FederationSpec, parse_spec
from tasks.spec.records import EvaluationRecord, Metrics

MAPS = ("map50_voc10", "map50_voc07", "map50_coco", "map_coco")
OLD_EVALUATION = {
    "clients": ["1"],
    "test_digest": "0" * 64,
    "test_size": 10,
    "loss": 1.0,
    "map50_voc10": 0.5,
    "recall": 0.75,
    "per_class": {"chair": 0.5, "table": None},
    "score_threshold": 0.001,
    "seconds": 1.0,
}
NEW_EVALUATION = OLD_EVALUATION | {
    "clients": ["2"],
    "test_size": 30,
    "map50_voc07": 0.25,
    "map50_coco": 0.75,
    "map_coco": 0.125,
    "per_class_coco": {"chair": 0.125, "table": None},
    "per_class_recall": {"chair": 0.5, "table": None},
}


def _record(document: dict[str, object]) -> EvaluationRecord:
    return parse(EvaluationRecord, document, source="round.json", newest=1)


def test_records_without_the_newer_metrics_are_read() -> None:
    old = _record(OLD_EVALUATION)
    assert [getattr(old, name) for name in MAPS] == [0.5, None, None, None]
    assert old.per_class_coco == old.per_class_recall == {}
    assert parse(Metrics, {"map50_voc10": 0.5}, source="round.json", newest=1).map_coco is None


def test_newer_figures_have_a_weighted_and_a_plain_mean() -> None:
    first = _record(NEW_EVALUATION | {"clients": ["1"], "test_size": 10, "map_coco": 0.5, "map50_voc07": 0.75})
    metrics = aggregate_metrics([], [first, _record(NEW_EVALUATION)])
    assert metrics.map_coco == pytest.approx((10 * 0.5 + 30 * 0.125) / 40)
    assert metrics.map50_voc07 == pytest.approx((10 * 0.75 + 30 * 0.25) / 40)
    assert metrics.map50_coco == 0.75
    assert metrics.per_class_coco == {"chair": 0.125, "table": None}
    assert metrics.per_class_recall == {"chair": 0.5, "table": None}
    assert metrics.unweighted["map_coco"] == pytest.approx(0.3125)
    assert metrics.unweighted["map50_voc07"] == 0.5


def test_a_client_without_the_newer_figures_is_left_out_of_their_means() -> None:
    metrics = aggregate_metrics([], [_record(OLD_EVALUATION), _record(NEW_EVALUATION)])
    assert metrics.map50_voc10 == 0.5
    assert metrics.map_coco == metrics.unweighted["map_coco"] == 0.125
    assert metrics.per_class_coco == {"chair": 0.125, "table": None}


@pytest.mark.parametrize("name", MAPS)
def test_any_metric_can_be_the_target(name: str) -> None:
    spec = FederationSpec.model_validate({"target_map": 0.5, "target_metric": name})
    others = dict.fromkeys(MAPS, 0.9) | {name: 0.25}
    assert not decide_stop(spec, 1, [Metrics(), Metrics.model_validate(others)]).stop
    reached = decide_stop(spec, 1, [Metrics(), Metrics.model_validate({name: 0.5})])
    assert (reached.stop, reached.reason) == (True, "target_map")
    assert not decide_stop(spec, 1, [Metrics(), Metrics()]).stop


@pytest.mark.parametrize("name", [*MAPS, "loss"])
def test_any_metric_can_be_the_patience_metric(name: str) -> None:
    spec = FederationSpec.model_validate({"patience": 2, "patience_metric": name})
    better = -1 if name == "loss" else 1
    values = [0.5, 0.5 + better * 0.1, 0.5 + better * 0.1, 0.5]
    history = [Metrics.model_validate({name: value}) for value in values]
    assert not decide_stop(spec, 2, history[:3]).stop
    assert decide_stop(spec, 3, history).reason == "patience"


def test_an_unknown_metric_is_refused_by_name() -> None:
    for field in ("target_metric", "patience_metric"):
        with pytest.raises(SpecError, match=f"spec.yaml: {field}: expected .*'map_coco'.*, found 'map75'$"):
            parse_spec({field: "map75"}, source="spec.yaml")
