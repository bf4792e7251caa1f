"""The plots of a suite show the figures of its result."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tasks.figures.fractions import fraction_top
from tasks.figures.published import published_plot
from tasks.figures.suite import classes_plot, experiment_plot, experiments_plot, federations_plot, suite_plots
from tasks.spec.data import FederatedStreet
from tasks.spec.federation import FederationSpec
from tasks.spec.suite_records import SuiteResult
from tasks.suite.summary import summarise
from tests.present import present
from tests.tasks.figures.drawn import drawn, xs, ys
from tests.tasks.suite.suite_results import NOW, between, cell, result


def legend(owner: Axes | Figure) -> list[str]:
    found = owner.get_legend() if isinstance(owner, Axes) else owner.legends[0]
    return [text.get_text() for text in present(found).get_texts()]


def test_a_federation_is_drawn_between_its_references_by_round() -> None:
    figure = experiment_plot(between(), "apart", "round")
    (axes,) = figure.axes
    assert axes.get_xlabel() == "round"
    assert axes.get_ylabel() == "map50_voc10"
    assert legend(axes) == ["centralised (3 seeds)", "federated (3 seeds)", "local only (2 seeds)"]
    central, federated, alone = axes.lines
    np.testing.assert_array_equal(xs(federated), [0, 1, 2])
    np.testing.assert_allclose(ys(federated), [0, 0.5, 0.61])
    np.testing.assert_allclose(ys(central), [0, 0.7, 0.82])
    np.testing.assert_allclose(ys(alone), [0, 0.1, 0.305])
    # The federation's band reaches from the lowest to the highest seed in the last round.
    band = axes.collections[1].get_paths()[0].vertices
    assert {0.6, 0.62} <= {round(float(y), 6) for x, y in np.asarray(band) if x == 2}
    # The lines differ in style too, for print without colour.
    assert len({line.get_linestyle() for line in axes.lines}) == 3
    assert drawn(figure).width < 700


def test_plotted_over_bytes_references_are_level_lines_at_their_last_round() -> None:
    (axes,) = experiment_plot(between(), "apart", "bytes").axes
    assert axes.get_xlabel() == "MB of weights, clients up and down"
    central, federated, alone = axes.lines
    np.testing.assert_allclose(xs(federated), [0, 1, 2])
    assert list(ys(central)) == pytest.approx([0.82, 0.82])
    assert list(ys(alone)) == pytest.approx([0.305, 0.305])
    assert "centralised (3 seeds), last round" in legend(axes)


def test_plotted_over_time_each_role_has_its_own_times() -> None:
    slow = cell("a", "federated", 1, [0.0, *[0.5] * 11])
    (axes,) = experiment_plot(result(slow, cell("a", "centralised", 1, [0.0, 0.7])), "a", "time").axes
    assert axes.get_xlabel() == "wall time, min"
    assert [xs(line)[-1] for line in axes.lines] == [1, 11]
    assert not axes.collections  # one seed has no band


def test_rounds_with_different_numbers_of_passes_are_plotted_over_passes() -> None:
    some = cell("a", "federated", 1, [0.0, 0.1, 0.2], step=0.5)
    (axes,) = experiment_plot(result(some, cell("a", "centralised", 1, [0.0, 0.4])), "a", "round").axes
    assert axes.get_xlabel() == "passes over the training images"
    assert list(xs(axes.lines[1])) == [0, 0.5, 1]


def test_experiments_have_panels_of_one_scale_and_lines_in_a_common_panel() -> None:
    names = [f"e{number}" for number in range(8)]
    many = result(*(cell(name, "federated", 1, [0.0, number / 10]) for number, name in enumerate(names)))
    panels = [axes for axes in experiments_plot(many, "round").axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in panels] == names
    assert len({axes.get_ylim() for axes in panels}) == 1
    figure = federations_plot(many, "time")
    assert legend(figure) == [f"{name} (1 seed)" for name in names]
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == 8
    lonely = federations_plot(result(cell("a", "centralised", 1, [0.1]), cell("b", "federated", 1, [0.1])), "round")
    assert legend(lonely) == ["a, centralised (1 seed)", "b (1 seed)"]


def test_classes_are_bars_with_their_spread_and_a_mark_for_each_reference() -> None:
    (experiment,) = summarise(between()).experiments
    figure = classes_plot(experiment)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["chair", "table"]
    bars = [bar.get_width() for bar in axes.patches if isinstance(bar, Rectangle)]
    assert bars[0] == pytest.approx(0.61)
    assert np.isnan(bars[1])
    assert sorted(legend(figure)) == ["centralised", "federated", "local only"]
    marks = {line.get_label(): xs(line)[0] for line in axes.lines if not str(line.get_label()).startswith("_")}
    assert marks == {"centralised": pytest.approx(0.82), "local only": pytest.approx(0.305)}
    whiskers = axes.collections[0]
    assert isinstance(whiskers, LineCollection)
    assert whiskers.get_segments()[0][:, 0].tolist() == pytest.approx([0.6, 0.62])
    (alone,) = summarise(result(cell("a", "centralised", 1, [0.4]))).experiments
    assert legend(classes_plot(alone)) == ["centralised"]


def test_federated_and_local_only_differ_in_lightness_too() -> None:
    (axes,) = experiment_plot(between(), "apart", "round").axes
    _, federated, alone = (
        np.dot([0.299, 0.587, 0.114], [int(to_hex(line.get_color())[i : i + 2], 16) for i in (1, 3, 5)])
        for line in axes.lines
    )
    assert abs(federated - alone) > 25


def test_plots_of_files_and_of_results_without_any_figure() -> None:
    assert list(suite_plots(between())) == ["by-round", "by-bytes", "by-time", "by-class-apart"]
    both = result(
        cell("a", "federated", 1, [None, None], per_class={}),
        cell("b", "centralised", 1, [None], per_class={}),
    )
    plots = suite_plots(both)
    assert [name for name in plots if name.startswith("federations")] == [
        "federations-by-round", "federations-by-bytes", "federations-by-time",
    ]  # fmt: skip
    assert not [name for name in plots if "class" in name]
    for draw in plots.values():
        assert drawn(draw()).height > 300


@pytest.mark.parametrize(("greatest", "top"), [(0.97, 1.0), (0.5, 1.0), (0.4, 0.424), (0.01, 0.05)])
def test_an_axis_of_fractions_ends_at_one(greatest: float, top: float) -> None:
    (axes,) = experiment_plot(result(cell("a", "federated", 1, [0.0, greatest])), "a", "round").axes
    assert axes.get_ylim() == (0, pytest.approx(top))
    assert fraction_top([None]) == 0.05


def test_bands_and_whiskers_are_the_standard_deviation() -> None:
    runs = [cell("a", "federated", seed, [0.0, value]) for seed, value in ((1, 0.2), (2, 0.3), (3, 0.7))]
    (axes,) = experiment_plot(result(*runs), "a", "round").axes
    band = np.asarray(axes.collections[0].get_paths()[0].vertices)
    sd = np.std([0.2, 0.3, 0.7], ddof=1)
    assert sorted({round(float(y), 6) for x, y in band if x == 1}) == pytest.approx([0.4 - sd, 0.4 + sd], abs=1e-6)


STREET = FederatedStreet()


def on_street(*, split: Literal[5, 20] = 5, score: float = 0.9, **more: Any) -> SuiteResult:
    specs = {"a": FederationSpec(data=STREET.model_copy(update={"split": split}))}
    return result(cell("a", "federated", 1, [0.0, 0.5, score]), specs=specs, **more)


@pytest.mark.parametrize(("split", "best"), [(5, 0.870), (20, 0.846)])
def test_panels_by_round_have_the_best_published_figure_for_as_many_clients(split: Any, best: float) -> None:
    found = on_street(split=split)
    (axes,) = experiment_plot(found, "a", "round").axes
    assert legend(axes)[-1] == f"published, {split} clients: {best:.3f}"
    assert set(ys(axes.lines[-1])) == {best}
    assert to_hex(axes.lines[-1].get_color()) == "#8a919c"
    assert not any("published" in text for text in legend(experiment_plot(found, "a", "bytes").axes[0]))
    assert "published" in legend(federations_plot(found, "round"))[-1]


def test_a_published_line_above_the_axis_is_left_out() -> None:
    (axes,) = experiment_plot(on_street(score=0.3).model_copy(update={"cells": (
        cell("a", "federated", 1, [0.0, 0.3]),
    )}), "a", "round").axes  # fmt: skip
    assert legend(axes) == ["federated (1 seed)"]


def test_published_curves_have_a_plot_of_their_own_by_all_their_rounds() -> None:
    found = on_street()
    assert [name for name in suite_plots(found) if name.startswith("published")] == ["published-5"]
    figure = published_plot(found, 5)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert axes.get_ylim() == (0, 1)
    assert legend(figure) == [
        "a (1 seed)",
        "published: YOLOv3, centralised, E 1, B 1 (0.876)",
        "published: YOLOv3, 5 clients, E 1, B 1 (0.870)",
        "published: Faster R-CNN, centralised, E 1, B 1 (0.860)",
        "published: Faster R-CNN, 5 clients, E 1, B 1 (0.858)",
    ]
    ours, _, yolo, *_ = axes.lines
    assert list(ys(ours)) == [0.0, 0.5, 0.9]
    assert list(zip(xs(yolo), ys(yolo), strict=True))[-1] == (1000, 0.870)
    assert drawn(figure).width > 500


@pytest.mark.parametrize("other", ["data", "metric", "role", "images"])
def test_other_data_metrics_and_images_have_no_published_curves(other: str) -> None:
    found = on_street()
    changes: dict[str, dict[str, Any]] = {
        "data": {"specs": {"a": FederationSpec()}},
        "metric": {"metric": "map_coco"},
        "role": {"cells": (cell("a", "centralised", 1, [0.9]),)},
        "images": {"cells": (cell("a", "federated", 1, [0.9], on="holdout"),)},
    }
    assert not any(name.startswith("published") for name in suite_plots(found.model_copy(update=changes[other])))


def test_runs_that_shared_a_machine_have_no_plots_over_time() -> None:
    runs = [
        cell("a", "federated", seed, [0.1, 0.2], hosts=("00000001",)).model_copy(update={"federation": str(seed)})
        for seed in (1, 2)
    ]
    together = [
        run.model_copy(update={"points": tuple(p.model_copy(update={"committed": NOW}) for p in run.points)})
        for run in runs
    ]
    assert "by-time" in suite_plots(result(*runs))  # their records do not say when they ran
    assert [name for name in suite_plots(result(*together)) if "time" in name] == []
