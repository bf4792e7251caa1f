"""Figures of a round are weighted means over its clients, checked with literal numbers."""

from __future__ import annotations

import pytest

from tasks.errors import FedbenchError
from tasks.metrics.over_clients import aggregate_metrics
from tasks.spec.plans import UpdateRecord
from tasks.spec.records import ClientSpread, EvaluationRecord
from tests.records import evaluation_record, update_record


def _update(client: str, size: int, loss: float) -> UpdateRecord:
    return update_record(client, train_size=size, train_loss=loss)


def _evaluation(
    clients: tuple[str, ...], size: int, map50: float | None, *, loss: float | None = 1.0, **ap: float | None
) -> EvaluationRecord:
    return evaluation_record(*clients, test_size=size, loss=loss, map50_voc10=map50, recall=map50, per_class=ap)


def test_train_loss_is_weighted_by_images_and_test_figures_by_test_images() -> None:
    metrics = aggregate_metrics(
        [_update("1", 30, 2.0), _update("2", 10, 6.0)],
        [_evaluation(("1",), 10, 0.5, chair=0.5), _evaluation(("2",), 30, 0.1, chair=0.1)],
    )
    assert metrics.train_loss == 3.0
    assert metrics.map50_voc10 == pytest.approx(0.2)
    assert metrics.per_class == {"chair": pytest.approx(0.2)}
    assert metrics.unweighted["train_loss"] == 4.0
    assert metrics.unweighted["map50_voc10"] == pytest.approx(0.3)
    assert metrics.unweighted["per_class/chair"] == pytest.approx(0.3)


def test_each_client_of_a_shared_evaluation_counts() -> None:
    metrics = aggregate_metrics([], [_evaluation(("1", "2", "3"), 10, 0.4), _evaluation(("4",), 10, 0.8)])
    assert metrics.map50_voc10 == pytest.approx(0.5)
    assert metrics.unweighted["recall"] == pytest.approx(0.5)


def test_the_figures_of_one_shared_evaluation_keep_their_bits() -> None:
    metrics = aggregate_metrics([], [_evaluation(tuple("12345"), 191, 0.1 + 0.2, loss=1 / 3, chair=0.7)])
    assert metrics.map50_voc10 == metrics.unweighted["map50_voc10"] == 0.1 + 0.2
    assert metrics.loss == 1 / 3
    assert metrics.per_class == {"chair": 0.7}


def test_a_figure_that_a_client_lacks_is_left_out_and_not_counted_as_zero() -> None:
    metrics = aggregate_metrics(
        [],
        [
            _evaluation(("1",), 10, 0.6, chair=0.6, table=None),
            _evaluation(("2",), 30, None, loss=None, table=None),
        ],
    )
    assert metrics.map50_voc10 == 0.6
    assert metrics.loss == 1.0
    assert metrics.per_class == {"chair": 0.6, "table": None}
    assert metrics.unweighted["per_class/table"] is None
    assert metrics.train_loss is None


def test_a_client_without_test_images_has_no_weight() -> None:
    metrics = aggregate_metrics([], [_evaluation(("1",), 0, None, loss=None), _evaluation(("2",), 5, 0.5)])
    assert metrics.map50_voc10 == 0.5
    assert aggregate_metrics([], []).map50_voc10 is None


def test_the_order_of_records_changes_no_bit() -> None:
    updates = [_update(str(number), number, 0.1 * number) for number in range(1, 12)]
    evaluations = [_evaluation((str(number),), number, 0.07 * number, chair=0.03 * number) for number in range(1, 12)]
    assert aggregate_metrics(updates, evaluations) == aggregate_metrics(updates[::-1], evaluations[::-1])


def test_a_client_counted_twice_is_refused() -> None:
    with pytest.raises(FedbenchError, match="updates: expected each client once, found 1 more than once"):
        aggregate_metrics([_update("1", 1, 1.0), _update("1", 1, 1.0)], [])
    with pytest.raises(FedbenchError, match="evaluations: expected each client once, found 2 more than once"):
        aggregate_metrics([], [_evaluation(("1", "2"), 1, 0.1), _evaluation(("2",), 1, 0.1)])


def test_own_models_have_a_mean_a_worst_client_and_a_spread() -> None:
    own = [
        _evaluation(("1",), 10, 0.5, loss=3.0),
        _evaluation(("2",), 90, 0.1, loss=1.0),
        _evaluation(("3",), 5, None, loss=2.0),
    ]
    shared = [_evaluation(("1", "2", "3"), 10, 0.4)]
    metrics = aggregate_metrics([], shared, personal=own)
    assert (metrics.map50_voc10, metrics.deciding) == (0.4, metrics)
    personal = metrics.personal
    assert personal is not None
    assert (personal.clients, personal.decides) == (3, False)
    loss = personal.figures["loss"]
    assert (loss.mean, loss.worst, loss.worst_client, loss.clients) == (2.0, 3.0, "1", 3)
    assert loss.deviation == pytest.approx((2 / 3) ** 0.5)
    assert personal.figures["map50_voc10"] == ClientSpread(
        mean=0.3, worst=0.1, worst_client="2", deviation=0.2, clients=2
    )
    assert "map_coco" not in personal.figures


def test_without_a_shared_model_the_mean_over_own_models_decides() -> None:
    own = [_evaluation(("1",), 10, 0.5, loss=3.0), _evaluation(("2",), 90, 0.1, loss=1.0)]
    metrics = aggregate_metrics([_update("1", 30, 2.0)], [], personal=own, shared_model=False)
    assert (metrics.loss, metrics.map50_voc10, metrics.train_loss) == (None, None, 2.0)
    assert (metrics.deciding.loss, metrics.deciding.map50_voc10, metrics.deciding.train_loss) == (2.0, 0.3, 2.0)
    with pytest.raises(FedbenchError, match="evaluations of own models: expected each client once, found 1"):
        aggregate_metrics([], [], personal=[own[0], own[0]])
