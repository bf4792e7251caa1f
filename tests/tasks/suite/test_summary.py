"""Means, spreads, gaps and gains over seeds, checked against numpy and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.suite.course import course_of
from tasks.suite.summary import spread_of, summarise
from tests.present import present
from tests.tasks.suite.suite_results import between, cell, result


def test_mean_and_sample_deviation_equal_numpys() -> None:
    values = [0.31, 0.29, 0.4, 0.11]
    spread = spread_of(values)
    assert spread is not None
    assert (spread.n, spread.least, spread.greatest) == (4, 0.11, 0.4)
    assert spread.mean == pytest.approx(np.mean(values), rel=1e-14)
    assert spread.sd == pytest.approx(np.std(values, ddof=1), rel=1e-14)
    single = spread_of([None, 0.5])
    assert single is not None
    assert (single.n, single.mean, single.sd) == (1, 0.5, None)
    assert spread_of([None]) is None


def test_each_role_is_summarised_at_its_last_round() -> None:
    summary = summarise(between())
    assert [(row.role, row.seeds, row.runs, row.devices) for row in summary.rows] == [
        ("centralised", (1, 2, 3), 3, ()),
        ("federated", (1, 2, 3), 3, ()),
        ("local-only", (1, 2), 4, ("1", "2")),
    ]
    central, federated, alone = summary.rows
    assert present(federated.figures["map50_voc10"]).values == (0.6, 0.61, 0.62)
    assert present(central.figures["map_coco"]).mean == pytest.approx(0.41)
    assert present(federated.figures["train_loss"]).sd == 0
    # A seed's value is the mean over devices of 0.2 and 0.4. The second seed has 0.01 more.
    assert present(alone.figures["map50_voc10"]).values == pytest.approx((0.3, 0.31))
    assert present(alone.figures["map50_voc10"]).sd == pytest.approx(np.std([0.3, 0.31], ddof=1))
    assert present(federated.per_class["chair"]).mean == pytest.approx(0.61)
    assert federated.per_class["table"] is None
    assert present(federated.rounds_to_target).values == (1, 1, 1)
    assert (alone.rounds_to_target, alone.reached) == (None, 0)
    assert (present(federated.seconds).mean, present(federated.exchanged).mean, present(federated.moved).mean) == (
        120,
        2_000_000,
        500_000,
    )
    assert central.exchanged is alone.exchanged is None
    assert present(federated.gpu_seconds).mean == 90


def test_devices_alone_keep_their_own_figures() -> None:
    (experiment,) = summarise(between()).experiments
    assert [(row.device, present(row.figures["map50_voc10"]).values) for row in experiment.devices] == [
        ("1", (0.2, 0.2 + 0.01)), ("2", (0.4, 0.4 + 0.01)),
    ]  # fmt: skip


def test_gap_and_gain_are_paired_by_seed() -> None:
    (experiment,) = summarise(between()).experiments
    assert present(experiment.gap).difference.values == pytest.approx((-0.2, -0.21, -0.22))
    assert present(experiment.gain).difference.values == pytest.approx((0.3, 0.3))  # the seeds that both roles have
    assert present(experiment.gap).passes == 2
    (bare,) = summarise(result(cell("a", "federated", 1, [0.1]), cell("a", "centralised", 2, [0.2]))).experiments
    assert bare.gap is bare.gain is None


def test_pairs_are_compared_after_the_same_number_of_passes() -> None:
    # With half of the clients in a round, 3 rounds are 1.5 passes. Each round of centralised training is 1 pass.
    some = cell("a", "federated", 1, [0.0, 0.1, 0.2, 0.3], step=0.5)
    (experiment,) = summarise(result(some, cell("a", "centralised", 1, [0.0, 0.4, 0.9]))).experiments
    assert present(experiment.gap).passes == 1.5
    assert present(experiment.gap).difference.values == pytest.approx((0.3 - 0.4,))


def test_a_run_without_the_figure_is_in_no_pair() -> None:
    blind = result(cell("a", "federated", 1, [None, None]), cell("a", "centralised", 1, [0.0, 0.4]))
    (experiment,) = summarise(blind).experiments
    assert experiment.gap is None
    assert experiment.rows["federated"].figures["map50_voc10"] is experiment.rows["federated"].best is None


def test_a_row_has_the_best_round_and_the_last() -> None:
    (row,) = summarise(
        result(cell("a", "federated", 1, [0.0, 0.7, 0.4]), cell("a", "federated", 2, [0.9, None, 0.2]))
    ).rows
    assert present(row.best).values == (0.7, 0.9)
    assert present(row.figures["map50_voc10"]).values == (0.4, 0.2)


def test_a_seed_without_all_devices_is_left_out_of_the_mean() -> None:
    cells = [cell("a", "local-only", 1, [0.1], device="1"), cell("a", "local-only", 1, [0.3], device="2")]
    cells.append(cell("a", "local-only", 2, [0.9], device="2"))
    (experiment,) = summarise(result(*cells)).experiments
    assert experiment.rows["local-only"].seeds == (1,)
    assert present(experiment.rows["local-only"].figures["map50_voc10"]).values == (0.2,)
    assert [row.seeds for row in experiment.devices] == [(1,), (1, 2)]


def test_clients_with_their_own_test_sets_have_their_own_rows() -> None:
    (experiment,) = summarise(between(own_tests=True)).experiments
    clients = experiment.rows["federated"].per_client
    assert list(clients) == ["1", "2"]
    assert present(clients["1"]["recall"]).values == (0.321,) * 3
    assert clients["2"]["map50_voc10"] is None


def test_a_course_has_the_rounds_that_all_seeds_have() -> None:
    longer = cell("a", "federated", 2, [0.2, None, 0.6, 0.9])
    course = present(course_of(result(cell("a", "federated", 1, [0.0, 0.3, 0.4]), longer), "a", "federated"))
    assert list(course.rounds) == [0, 1, 2]
    assert course.mean == (0.1, None, 0.5)
    # Two seeds 0.2 apart have a sample standard deviation of 0.2 / √2.
    assert (course.low[1], course.high[1]) == (None, None)
    assert [course.low[0], course.high[0]] == pytest.approx([0.1 - 0.02**0.5, 0.1 + 0.02**0.5])
    assert [course.low[2], course.high[2]] == pytest.approx([0.5 - 0.02**0.5, 0.5 + 0.02**0.5])
    assert (course.n, course.seconds, course.exchanged) == (2, (0, 60, 120), (0, 1e6, 2e6))
    alone = present(course_of(between(), "apart", "local-only"))
    assert (alone.n, alone.mean[-1]) == (2, pytest.approx(0.305))
    assert present(course_of(between(), "apart", "federated")).n == 3
    assert course_of(result(longer), "a", "centralised") is None
