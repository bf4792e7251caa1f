"""What runs needed to reach the target, the area over bytes, and which runs shared a machine."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tasks.spec.suite_records import CellResult
from tasks.suite.area import area_over_bytes, common_budget
from tasks.suite.sharing import sharing_of
from tasks.suite.targets import to_target
from tests.tasks.suite.suite_results import NOW, cell, result


def test_the_costs_to_the_target_are_those_of_its_first_round() -> None:
    """Round k takes 60 s, exchanges 1 MB and makes 4 steps."""
    runs = [cell("a", "federated", 1, [0.1, 0.5, 0.4, 0.6]), cell("a", "federated", 2, [0.1, None, 0.2, 0.7])]
    found = to_target(runs, "map50_voc10", 0.5)
    assert (found.runs, found.reached, found.missed) == (2, 2, ())
    assert found.rounds is not None
    assert found.rounds.values == (1.0, 3.0)
    assert found.steps is not None
    assert found.steps.values == (4.0, 12.0)
    assert found.exchanged is not None
    assert found.exchanged.values == (1e6, 3e6)
    assert found.seconds is not None
    assert found.seconds.values == (60.0, 180.0)


def test_runs_that_never_reach_the_target_are_counted_with_their_last_round() -> None:
    runs = [cell("a", "federated", 1, [0.1, 0.5]), cell("a", "federated", 2, [0.1, 0.2, 0.3])]
    found = to_target(runs, "map50_voc10", 0.5)
    assert (found.runs, found.reached, found.missed) == (2, 1, (2,))
    assert found.rounds is not None
    assert found.rounds.values == (1.0,)
    never = to_target(runs, "map50_voc10", 0.9)
    assert (never.reached, never.rounds, never.seconds, never.missed) == (0, None, None, (1, 2))


def test_steps_that_are_not_on_record_are_none() -> None:
    old = cell("a", "federated", 1, [0.1, 0.5])
    old = old.model_copy(update={"points": tuple(point.model_copy(update={"steps": None}) for point in old.points)})
    assert to_target([old], "map50_voc10", 0.5).steps is None


def test_the_area_is_the_mean_score_up_to_the_common_budget() -> None:
    """Round k stands at k MB. Up to 2 MB: triangle and trapezoid; up to 1.5 MB the second one is cut."""
    run = cell("a", "federated", 1, [0.0, 0.4, 0.6])
    assert area_over_bytes(run, "map50_voc10", 2_000_000) == pytest.approx((0.2 + 0.5) / 2)
    assert area_over_bytes(run, "map50_voc10", 1_500_000) == pytest.approx((0.2 + 0.5 * (0.4 + 0.5) / 2) / 1.5)
    assert area_over_bytes(cell("a", "federated", 1, [0.7, 0.7]), "map50_voc10", 1_000_000) == pytest.approx(0.7)


def test_rounds_without_a_figure_have_no_corner_and_before_the_first_one_the_score_is_zero() -> None:
    assert area_over_bytes(cell("a", "federated", 1, [0.0, None, 0.6]), "map50_voc10", 2_000_000) == pytest.approx(0.3)
    assert area_over_bytes(cell("a", "federated", 1, [None, 0.4, 0.4]), "map50_voc10", 2_000_000) == pytest.approx(0.2)
    assert area_over_bytes(cell("a", "federated", 1, [0.0, 0.4, None]), "map50_voc10", 2_000_000) == pytest.approx(0.3)
    assert area_over_bytes(cell("a", "federated", 1, [None, None]), "map50_voc10", 1_000_000) is None


def test_the_budget_is_the_least_that_a_federated_run_exchanged() -> None:
    long, short = cell("a", "federated", 1, [0.0, 0.4, 0.6]), cell("b", "federated", 1, [0.0, 0.8])
    alone = cell("b", "centralised", 1, [0.1])
    assert common_budget(result(long, short, alone)) == 1_000_000
    assert area_over_bytes(long, "map50_voc10", 1_000_000) == pytest.approx(0.2)
    assert area_over_bytes(short, "map50_voc10", 2_000_000) is None  # it exchanged less
    assert common_budget(result(alone)) == 0
    assert area_over_bytes(long, "map50_voc10", 0) is None


def run(name: str, start: float, *, host: str = "00000001", experiment: str = "a", seed: int = 1) -> CellResult:
    """Return a run of three rounds of a minute each, from ``start`` minutes on."""
    made = cell(experiment, "federated", seed, [0.1, 0.2, 0.3], federation=name, hosts=(host,))
    points = [
        point.model_copy(
            update={"seconds": 60.0 * (number + 1), "committed": NOW + timedelta(minutes=start + number + 1)}
        )
        for number, point in enumerate(made.points)
    ]
    return made.model_copy(update={"points": tuple(points)})


@pytest.mark.parametrize(
    ("start", "host", "shared"),
    [
        (2.0, "00000001", True),  # the last of three minutes
        (3.0, "00000001", False),  # one after the other
        (2.99, "00000001", False),  # 0.6 of 180 seconds
        (0.0, "00000002", False),  # at the same time on another machine
    ],
)
def test_runs_share_a_machine_if_they_have_rounds_there_at_the_same_time(start: float, host: str, shared: bool) -> None:
    found = sharing_of(result(run("one", 0), run("other", start, host=host, seed=2)))
    assert found.shared == (frozenset({"one", "other"}) if shared else frozenset())
    assert found.alone == (frozenset() if shared else frozenset({"one", "other"}))


def test_a_run_in_the_pause_of_another_shares_nothing() -> None:
    paused = run("paused", 0)
    late = paused.last.model_copy(update={"committed": NOW + timedelta(minutes=60)})
    paused = paused.model_copy(update={"points": (*paused.points[:2], late)})
    assert sharing_of(result(paused, run("meanwhile", 10, seed=2))).shared == frozenset()


def test_a_run_in_two_experiments_does_not_share_with_itself() -> None:
    assert sharing_of(result(run("one", 0), run("one", 0, experiment="b"))).alone == {"one"}


def test_runs_whose_records_do_not_say_when_or_where_are_unknown() -> None:
    found = sharing_of(result(cell("a", "federated", 1, [0.1, 0.2]), run("one", 0, seed=2)))
    assert found.unknown == {"run-a-federated-1-None"}
    assert found.alone == {"one"}
