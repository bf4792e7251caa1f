"""The plots of detections show the figures of their analysis, and the tables beside them too."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from tasks.analysis.analyse import FALLBACK_THRESHOLD, DetectionAnalysis, analyse
from tasks.figures.detections import confusion_plot, curves_plot, errors_plot
from tasks.metrics.scored import ScoredImages, ScoredModel
from tasks.report.detections import analysis_files
from tests.tasks.figures.drawn import drawn, xs, ys
from tests.tasks.metrics.scenes import CLASSES, found_of, truth_of

SQUARE, OTHER, FAR = [0, 0, 9, 9], [50, 50, 59, 59], [200, 200, 209, 209]
IMAGES = ScoredImages(
    ("1",), "test", "a" * 64,
    (truth_of([SQUARE, OTHER], [0, 0]), truth_of([FAR], [1])),
    (found_of([FAR, SQUARE, OTHER], [0.9, 0.8, 0.7]), found_of([FAR], [0.6], [1])),
)  # fmt: skip
SCORED = ScoredModel(CLASSES, 0.001, 100, (IMAGES,))
NOTHING = ScoredModel(CLASSES, 0.001, 100, (replace(IMAGES, detections=(found_of([], []), found_of([FAR], [0.9]))),))


@pytest.fixture(scope="module")
def analysis() -> DetectionAnalysis:
    return analyse(SCORED)


def _caption(figure: Figure) -> str:
    return figure.get_supxlabel()


def test_a_curve_is_its_envelope_and_both_axes_end_at_one(analysis: DetectionAnalysis) -> None:
    figure = curves_plot(analysis, "run, round 7")
    (axes,) = figure.axes
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 1), (0, 1))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["1.000  carton (1)", "0.667  basket (2)"]
    carton, dot, basket, _ = axes.lines
    assert list(zip(xs(carton), ys(carton), strict=True)) == [(0, 1), (1, 1), (1, 1), (1, 0)]
    assert (xs(dot)[0], ys(dot)[0]) == (1, 1)
    # Under the line of steps lies the average precision.
    assert np.trapezoid(ys(basket), xs(basket)) == pytest.approx(2 / 3)
    assert _caption(figure).startswith("run, round 7  ·  AP50 0.833  ·  2 images  ·  dots: score 0.6,")
    assert drawn(figure).width > 900


def test_the_confusion_matrix_shows_shares_and_numbers(analysis: DetectionAnalysis) -> None:
    figure = confusion_plot(analysis)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["1.00\n2", "1.00\n1", "1.00\n1"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "basket  2", "carton  1", "chair  0", "background  1",
    ]  # fmt: skip
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()][-1] == "missed"
    assert figure.axes[1].get_ylim() == (0, 1)
    assert "score at least 0.6 (highest F1 on these images)" in _caption(figure)
    drawn(figure)


def test_bars_show_what_each_type_of_errors_costs(analysis: DetectionAnalysis) -> None:
    figure = errors_plot(analysis)
    (axes,) = figure.axes
    widths = [bar.get_width() for bar in axes.patches]  # type: ignore[attr-defined]
    assert widths == pytest.approx([0, 0, 0, 0, 1 / 6, 0, 1 / 6, 0])
    assert [text.get_text() for text in axes.texts][4] == "0.167   n = 1"
    assert axes.get_xlim()[1] <= 1
    drawn(figure)


def test_the_tables_have_the_same_figures(analysis: DetectionAnalysis) -> None:
    files = {name: make() for name, make in analysis_files(analysis, "run").items()}
    tables = {name: list(csv.DictReader(io.StringIO(data.decode()))) for name, data in files.items() if "csv" in name}
    assert sorted(files) == sorted(f"{name}.{kind}" for name in ("precision-recall", "confusion", "errors")
                                   for kind in ("csv", "png"))  # fmt: skip
    assert [(row["class"], row["recall"], row["score"]) for row in tables["precision-recall.csv"]] == [
        ("basket", "0.5", "0.8"), ("basket", "1.0", "0.7"), ("carton", "1.0", "0.6"),
    ]  # fmt: skip
    assert len(tables["confusion.csv"]) == 15
    assert {(row["object"], row["detected_as"]): row["count"] for row in tables["confusion.csv"]}[
        ("background", "basket")
    ] == "1"
    assert [row["error"] for row in tables["errors.csv"]][-2:] == ["false positives", "false negatives"]
    assert float(tables["errors.csv"][4]["ap_gain"]) == pytest.approx(1 / 6)
    figures = analysis.as_json()
    assert figures["errors"]["background"] == {"count": 1, "gain": pytest.approx(1 / 6)}
    assert figures["confusion"]["counts"][3] == [1, 0, 0, 0]


@pytest.mark.parametrize("scored", [NOTHING, replace(NOTHING, sets=()), replace(SCORED, sets=(IMAGES, IMAGES))])
def test_plots_of_nothing_and_of_several_sets(scored: ScoredModel) -> None:
    analysis = analyse(scored)
    for name, make in analysis_files(analysis, "run $x$").items():
        assert make(), name
    if len(scored.sets) == 2:
        assert "4 images of 2 sets, pooled" in _caption(errors_plot(analysis))
    else:
        assert analysis.confusion.threshold == FALLBACK_THRESHOLD
        assert "score at least 0.3 (no detection is right)" in _caption(confusion_plot(analysis))


def test_many_classes_have_lines_for_the_worst_and_no_numbers() -> None:
    names = tuple(f"class {number}" for number in range(60))
    boxes = [[20 * number, 0, 20 * number + 9, 9] for number in range(60)]
    images = ScoredImages(
        ("1",), "test", "a" * 64, (truth_of(boxes, list(range(60))),),
        (found_of(boxes[:50], [0.9] * 50, list(range(50))),),
    )  # fmt: skip
    analysis = analyse(ScoredModel(names, 0.001, 100, (images,)))
    figure = curves_plot(analysis)
    assert figure.legends[0].get_title().get_text() == "AP50  the 24 worst of 60 classes"
    assert len(figure.legends[0].get_texts()) == 24
    assert not confusion_plot(analysis).axes[0].texts
    assert max(drawn(confusion_plot(analysis)).size) < 7000
