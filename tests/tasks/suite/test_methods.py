"""Methods beside FedAvg of the same local training: who is paired with whom, differences and their interval."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.report.html import report_html
from tasks.report.latex import latex_tables
from tasks.report.markdown import report_markdown
from tasks.report.method_tables import methods_table
from tasks.spec.federation import FederationSpec, with_fields
from tasks.spec.strategies import FedAdamSpec, FedAvgSpec, FedProxSpec, ScaffoldSpec
from tasks.spec.suite_records import SuiteResult
from tasks.suite.matches import ClassMatches, ImageMatches
from tasks.suite.methods import compare_methods
from tests.tasks.suite.suite_results import between, cell, result

ADAMW = FederationSpec()
SGD = with_fields(
    ADAMW,
    {"training.optimizer.kind": "sgd", "training.optimizer.momentum": 0, "training.clip_norm": None},
    source="test",
)
SPECS = {
    "fedavg-adamw": ADAMW,
    "fedavg-sgd": SGD,
    "uniform": ADAMW.model_copy(update={"strategy": FedAvgSpec(weights="uniform"), "max_rounds": 3}),
    "fedadam": ADAMW.model_copy(update={"strategy": FedAdamSpec()}),
    "scaffold": SGD.model_copy(update={"strategy": ScaffoldSpec()}),
    "other": ADAMW.model_copy(
        update={"strategy": FedProxSpec(), "training": ADAMW.training.model_copy(update={"batch_size": 3})}
    ),
}
# The last round's figures at the seeds 1, 2, 3.
LAST = {
    "fedavg-adamw": (0.5, 0.4, 0.3),
    "fedavg-sgd": (0.2, 0.2),
    "uniform": (0.5,),
    "fedadam": (0.6, 0.6, 0.6),
    "scaffold": (0.1, 0.3),
    "other": (0.9,),
}


@pytest.fixture(scope="module")
def suite() -> SuiteResult:
    cells = [
        cell(name, "federated", seed, [0.0, 0.1, value])
        for name, values in LAST.items()
        for seed, value in enumerate(values, start=1)
    ]
    return result(*cells, specs=SPECS)


def test_a_method_is_paired_with_the_fedavg_that_trains_in_the_same_way(suite: SuiteResult) -> None:
    """``other`` has another batch size than any FedAvg, so it is in no table. When a run stops does not matter."""
    assert [(item.experiment, item.baseline) for item in compare_methods(suite)] == [
        ("fedavg-adamw", None),
        ("fedadam", "fedavg-adamw"),
        ("uniform", "fedavg-adamw"),
        ("fedavg-sgd", None),
        ("scaffold", "fedavg-sgd"),
    ]


def test_the_differences_are_by_seed_and_their_interval_is_students(suite: SuiteResult) -> None:
    found = {item.experiment: item for item in compare_methods(suite)}
    adam = found["fedadam"]
    assert adam.paired is not None
    assert adam.paired.difference.values == pytest.approx((0.1, 0.2, 0.3))
    # Mean 0.2, sample standard deviation 0.1, t(0.975; 2) = 4.302653.
    assert adam.interval == pytest.approx((0.2 - 4.302653 * 0.1 / 3**0.5, 0.2 + 4.302653 * 0.1 / 3**0.5))
    uniform = found["uniform"]
    assert uniform.paired is not None
    assert uniform.paired.difference.values == (0.0,)
    assert uniform.interval is None  # one seed
    assert found["fedavg-sgd"].paired is None


def test_the_table_has_every_method(suite: SuiteResult) -> None:
    table = methods_table(suite)
    assert table is not None
    assert [[cell.text for cell in row[:5]] for row in table.rows] == [
        ["fedavg-adamw", "a baseline", "0.400 ± 0.100", "–", "–"],
        ["fedadam", "fedavg-adamw", "0.600 ± 0.000", "+0.200 ± 0.100", "−0.048 to +0.448"],
        ["uniform", "fedavg-adamw", "0.500", "0.000", "–"],
        ["fedavg-sgd", "a baseline", "0.200 ± 0.000", "–", "–"],
        ["scaffold", "fedavg-sgd", "0.200 ± 0.141", "0.000 ± 0.141", "−1.271 to +1.271"],
    ]
    assert "| fedadam | fedavg-adamw | **0.600 ± 0.000 (n = 3)** |" in report_markdown(suite)
    latex = latex_tables(suite)
    assert r"fedadam & fedavg-adamw & $0.600 \pm 0.000$ (3) & $+0.200 \pm 0.100$ (3) & $-0.048$ to $+0.448$" in latex


def test_without_methods_there_is_no_table() -> None:
    assert compare_methods(between()) == []
    assert methods_table(between()) is None
    assert "Methods" not in report_markdown(between())


def test_methods_are_ranked_by_their_mean_difference(suite: SuiteResult) -> None:
    assert [(item.experiment, item.rank) for item in compare_methods(suite)] == [
        ("fedavg-adamw", None), ("fedadam", 1), ("uniform", 2), ("fedavg-sgd", None), ("scaffold", 1),
    ]  # fmt: skip
    without = cell("uniform", "federated", 9, [0.0, 0.9])  # the baseline has no run of this seed
    cells = [*(item for item in suite.cells if item.experiment != "uniform"), without]
    found = compare_methods(suite.model_copy(update={"cells": tuple(cells)}))
    assert [(item.experiment, item.rank) for item in found][:3] == [
        ("fedavg-adamw", None), ("fedadam", 1), ("uniform", None),
    ]  # fmt: skip


def test_bootstrap_intervals_need_three_seeds_and_lie_within_the_differences(suite: SuiteResult) -> None:
    found = {item.experiment: item for item in compare_methods(suite)}
    interval = found["fedadam"].over_seeds  # of the differences 0.1, 0.2 and 0.3
    assert interval is not None
    assert interval == pytest.approx((0.1, 0.3))  # of 27 draws one has the least mean, and 1 in 27 is over 2.5 %
    assert found["scaffold"].over_seeds is None
    assert found["fedadam"].over_images is None
    table = methods_table(suite)
    assert table is not None
    assert list(table.head[5:]) == ["bootstrap, seeds", "rank", "wall time", "moved"]
    notes = {row[0].text: row[5].note for row in table.rows}
    assert notes == {
        "fedavg-adamw": "", "fedadam": "", "uniform": "fewer than 3 seeds", "fedavg-sgd": "",
        "scaffold": "fewer than 3 seeds",
    }  # fmt: skip
    assert "There is no interval over test images" in report_html(suite)


def perfect(images: int, right: int) -> ImageMatches:
    """Return matches in which one object of ``images`` images each is found in the first ``right`` ones."""
    detections, objects = np.arange(right), np.arange(images)
    found = ClassMatches(detections, np.ones(right, bool), np.bincount(objects).astype(float))
    return ImageMatches(images, "t", (found,))


def test_intervals_over_images_are_of_runs_whose_figures_are_those_of_their_matches(suite: SuiteResult) -> None:
    """10 images with an object each: the mAP is the part of the images in which it is found."""
    ten = {
        f"run-{name}-federated-{seed}-None": perfect(10, round(10 * value))
        for name, values in LAST.items()
        for seed, value in enumerate(values, start=1)
    }
    compared = compare_methods(suite, ten)
    found = {item.experiment: item for item in compared}
    adam, uniform, scaffold = (found[name].over_images for name in ("fedadam", "uniform", "scaffold"))
    assert adam is not None
    assert scaffold is not None
    assert 0 <= adam[0] < 0.2 < adam[1] < 0.6
    assert scaffold[0] <= 0.0 <= scaffold[1]
    assert uniform == (0.0, 0.0)  # equal to its baseline in every image
    table = methods_table(suite, compared)
    assert table is not None
    assert table.head[6] == "bootstrap, seeds and images"
    assert {row[0].text: row[6].note for row in table.rows}["scaffold"] == "images alone"
    assert "also draws the test images anew" in report_html(suite, compared=compared)
    assert r"\begin{tabular}{llrrrrr}" in latex_tables(suite, compared)
    # Matches of another round, or of another test set, do not count.
    wrong = {**ten, "run-fedadam-federated-2-None": perfect(10, 3)}
    assert {item.experiment: item.over_images for item in compare_methods(suite, wrong)}["fedadam"] is None
    other = {**ten, "run-fedadam-federated-2-None": perfect(20, 12)}
    assert {item.experiment: item.over_images for item in compare_methods(suite, other)}["fedadam"] is None
    short = {name: matches for name, matches in ten.items() if name != "run-fedadam-federated-2-None"}
    assert {item.experiment: item.over_images for item in compare_methods(suite, short)}["fedadam"] is None
