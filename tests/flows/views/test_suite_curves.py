"""Curves over the seeds of a suite's experiments, for MLflow's parent run."""

from __future__ import annotations

import statistics

import pytest

from flows.suite.models import best_cell
from flows.views.suite_curves import charted, curves_over_seeds, suite_description, whole_groups
from tasks.spec.federation import FederationSpec
from tasks.spec.suite import Cell, Experiment, SuiteSpec, cells_of
from tests.tasks.suite.suite_results import between, cell

NAME = "average_precision/map50_voc10/apart"


def test_means_and_deviations_are_over_the_seeds_of_each_round() -> None:
    seeds: dict[int, list[float | None]] = {1: [0.0, 0.5, 0.7], 2: [0.2, 0.6], 3: [0.1, None]}
    cells = [cell("apart", "federated", seed, values) for seed, values in seeds.items()]
    curves = curves_over_seeds(cells)
    assert [item.round for item in curves] == [0, 1, 2]
    first, second, third = (item.figures for item in curves)
    assert first[f"{NAME} mean"] == pytest.approx(0.1)
    assert first[f"{NAME} deviation"] == pytest.approx(0.1)
    assert second[f"{NAME} mean"] == pytest.approx(0.55)
    assert second[f"{NAME} deviation"] == pytest.approx(statistics.stdev([0.5, 0.6]))
    assert (third[f"{NAME} mean"], third[f"{NAME} deviation"]) == (0.7, None)
    assert [item["over_seeds/seeds/apart"] for item in (first, second, third)] == [3.0, 3.0, 1.0]
    assert first["over_seeds/loss/apart mean"] == 2.0


def test_local_only_is_the_mean_over_all_devices_of_a_seed() -> None:
    values = {(1, "1"): 0.2, (1, "2"): 0.4, (2, "1"): 0.9}  # seed 2 lacks a device
    cells = [cell("apart", "local-only", seed, [value], device=device) for (seed, device), value in values.items()]
    (item,) = curves_over_seeds(cells)
    assert item.figures["average_precision/map50_voc10/apart local only mean"] == pytest.approx(0.3)
    assert item.figures["over_seeds/seeds/apart local only"] == 1.0


def planned() -> tuple[SuiteSpec, list[Cell]]:
    experiment = Experiment(name="apart", spec=FederationSpec(), seeds=(1, 2))
    suite = SuiteSpec(experiments=(experiment,))
    return suite, cells_of(suite)


def test_an_experiment_has_curves_once_all_of_its_seeds_are_done() -> None:
    _, cells = planned()
    done = [cell("apart", "federated", 1, [0.1]), cell("apart", "centralised", 1, [0.1])]
    assert whole_groups(cells, done) == []
    done.append(cell("apart", "federated", 2, [0.2]))
    assert [item.name for item in whole_groups(cells, done)] == ["apart.s1", "apart.s2"]


def test_the_description_has_the_figures_so_far() -> None:
    suite, cells = planned()
    text = suite_description(suite, cells, [cell("apart", "federated", seed, [0.1 * seed]) for seed in (1, 2)])
    assert "2 of 4 cells done" in text
    assert "| apart | 2 | 0.150" in text
    assert charted(between().cells, "map50_voc10") == [f"{NAME} mean"]


def test_the_best_cell_of_an_experiment_has_the_greatest_figure_of_its_best_round() -> None:
    cells = [
        cell("apart", "federated", 1, [0.1, 0.9, 0.2], best_round=2),  # held-out images chose round 2
        cell("apart", "federated", 2, [0.1, 0.4, 0.3]),
        cell("apart", "federated", 3, [0.1, 0.4]),
        cell("apart", "federated", 4, [None]),
    ]
    best = best_cell(cells, "map50_voc10")
    assert best is not None
    assert best.seed == 2
    assert best_cell(cells[3:], "map50_voc10") is None
