"""The plots show the figures of the records, and the sheet shows the detections."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tasks.data.samples import Regions
from tasks.errors import DataError
from tasks.figures.boxes import class_color
from tasks.figures.plots import class_by_device_plot, client_losses_plot, rounds_plot
from tasks.figures.sheet import GREY, TILE_WIDTH, detection_sheet
from tasks.metrics.detections import ImageDetections
from tasks.spec.plans import ClientFailure
from tasks.spec.records import Decision, Metrics, RoundRecord
from tests.present import present
from tests.records import round_plan, round_record, update_record
from tests.tasks.figures.drawn import drawn, xs, ys


def record(
    number: int, map50: float | None, losses: dict[str, float] | None = None, dropped: tuple[str, ...] = ()
) -> RoundRecord:
    """Return the record of a round with these clients' train losses. Round 0 has no plan."""
    losses = losses or {}
    updates = tuple(update_record(client, round=number, train_loss=loss) for client, loss in losses.items())
    plan = round_plan(*losses, *dropped, round=number) if number else None
    failures = tuple(
        ClientFailure(client=client, phase="request_update", kind="client-error", reason="NaN") for client in dropped
    )
    mean = sum(losses.values()) / len(losses) if losses else None
    return round_record(
        number,
        plan=plan,
        updates=updates,
        dropped=failures,
        metrics=Metrics(train_loss=mean, loss=5.0 / (number + 1), map50_voc10=map50, recall=map50),
    )


def _texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_rounds_plot_draws_every_figure_and_marks_the_best_round() -> None:
    figure = rounds_plot([record(2, 0.3, {"1": 1.0}), record(0, 0.0), record(1, 0.4, {"1": 2.0}), record(3, 0.4)])
    losses, scores, maps = figure.axes
    train, test = losses.lines
    assert list(xs(train)) == [0, 1, 2, 3]
    np.testing.assert_array_equal(ys(train), [np.nan, 2.0, 1.0, np.nan])
    np.testing.assert_allclose(ys(test), [5.0, 2.5, 5 / 3, 1.25])
    np.testing.assert_array_equal(ys(scores.lines[0]), [0.0, 0.4, 0.3, 0.4])
    assert scores.get_title(loc="right") == "best map50_voc10 0.400, round 1"  # the first of equals
    np.testing.assert_array_equal(ys(maps.lines[0]), [0.0, 0.4, 0.3, 0.4])
    assert [len(xs(line)) for line in maps.lines] == [4, 4, 4, 4, 1]
    assert drawn(figure).width > 1000


def test_rounds_plot_marks_the_best_round_by_the_federations_metric() -> None:
    decision = Decision(stop=False, best_round=1, best_metric="map_coco", best_value=0.2)
    records = []
    for number, score in enumerate((0.1, 0.2, 0.15)):
        metrics = Metrics(map50_voc10=number / 10, map_coco=score)
        records.append(record(number, None).model_copy(update={"metrics": metrics, "decision": decision}))
    _, scores, maps = rounds_plot(records).axes
    assert scores.get_title(loc="right") == ""
    assert maps.get_title(loc="right") == "best map_coco 0.200, round 1"
    assert [tuple(map(float, pair)) for pair in zip(xs(maps.lines[-1]), ys(maps.lines[-1]), strict=True)] == [
        (1.0, 0.2)
    ]


def test_rounds_plot_for_a_narrow_page_has_the_same_panels_below_each_other() -> None:
    records = [record(0, 0.1), record(1, 0.4, {"1": 2.0})]
    wide, narrow = rounds_plot(records), rounds_plot(records, stacked=True)
    titles = [[axes.get_title(loc="left") for axes in figure.axes] for figure in (wide, narrow)]
    assert titles[0] == titles[1]
    assert drawn(wide).width == 2 * drawn(narrow).width
    lefts = {axes.get_position().x0 for axes in narrow.axes}
    assert max(lefts) - min(lefts) < 0.02


def test_rounds_plot_without_any_figure_is_an_empty_plot() -> None:
    assert rounds_plot([]).axes[1].get_title(loc="right") == ""
    figure = rounds_plot([record(0, None)])
    assert figure.axes[1].get_title(loc="right") == ""
    assert drawn(figure).width > 1000


def test_class_by_device_shows_every_count_and_the_sums() -> None:
    figure = class_by_device_plot({"1": {"chair": 12, "table": 0}, "2": {"chair": 3, "basket": 700}})
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1\n12", "2\n703"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["basket  700", "chair  15", "table  0"]
    assert _texts(figure) == ["·", "700", "12", "3", "·", "·"]
    assert drawn(figure).height > 200


def test_class_by_device_without_boxes() -> None:
    assert drawn(class_by_device_plot({"1": {"chair": 0}})).height > 200
    assert _texts(class_by_device_plot({})) == []


@pytest.mark.parametrize(("classes", "devices"), [(1600, 2), (2, 1600)])
def test_a_set_of_many_classes_or_devices_is_drawn(classes: int, devices: int) -> None:
    """Agg draws at most 65,536 dots; 1,200 classes of the usual height would need more."""
    counts = {f"d{device}": {f"c{number}": 1 + number for number in range(classes)} for device in range(devices)}
    image = drawn(class_by_device_plot(counts))
    assert max(image.size) < 7500


def test_the_losses_of_many_clients_are_drawn() -> None:
    records = [record(0, 0.0), record(1, 0.1, {str(client): 1 + client / 2500 for client in range(2500)})]
    image = drawn(client_losses_plot(records))
    assert image.height < 7500


def test_client_losses_has_a_row_for_each_client_and_a_cross_where_it_was_dropped() -> None:
    records = [record(0, 0.0)]
    for number in (1, 2):
        losses = {str(client): client / number for client in range(1, 21) if (client, number) != (3, 2)}
        records.append(record(number, 0.1, losses, dropped=("3",) if number == 2 else ()))
    figure = client_losses_plot(records)
    top, cells = figure.axes[:2]
    assert [label.get_text() for label in cells.get_yticklabels()] == [str(client) for client in range(1, 21)]
    shown = np.ma.filled(present(cells.images[0].get_array()).astype(float), np.nan)
    assert shown.shape == (20, 2)
    assert shown[9].tolist() == [10.0, 5.0]
    assert np.isnan(shown[2, 1])
    crosses = [tuple(point) for marks in cells.collections for point in np.asarray(marks.get_offsets()).tolist()]
    assert crosses == [(2.0, 2.0)]
    assert list(xs(top.lines[0])) == [1, 2]
    assert drawn(figure).height > 800


def test_client_losses_before_the_first_round() -> None:
    assert drawn(client_losses_plot([record(0, 0.0)])).width > 500


def _gray(width: int = 704, height: int = 576) -> Image.Image:
    return Image.new("RGB", (width, height), (128, 128, 128))


def test_the_sheet_draws_truth_and_detections_above_the_score() -> None:
    truth = (np.array([[100, 100, 300, 300]]), np.array([0]))
    certain = ImageDetections(np.array([[400, 300, 600, 500]]), np.array([0.9]), np.array([1]))
    unsure = ImageDetections(np.array([[400, 300, 600, 500]]), np.array([0.2]), np.array([1]))
    nothing = (np.zeros((0, 4)), np.zeros(0, np.int64))
    blank = np.asarray(detection_sheet([(_gray(), nothing, ImageDetections.empty())], ["a", "b"]))
    with_truth = np.asarray(detection_sheet([(_gray(), truth, unsure)], ["a", "b"]))
    with_both = np.asarray(detection_sheet([(_gray(), truth, certain)], ["a", "b"]))
    assert blank.shape == with_truth.shape == with_both.shape
    scale, (top, left) = TILE_WIDTH / 704, np.argwhere((blank == 128).all(axis=2)).min(axis=0)

    def changed(one: np.ndarray, other: np.ndarray) -> tuple[int, int, int, int]:
        rows, columns = np.nonzero((one != other).any(axis=2))
        return columns.min() - left, rows.min() - top, columns.max() - left, rows.max() - top

    assert changed(blank, with_truth) == pytest.approx([100 * scale, 100 * scale, 300 * scale, 300 * scale], abs=2)
    predicted = changed(with_truth, with_both)
    assert (predicted[0], predicted[2], predicted[3]) == pytest.approx([400 * scale, 600 * scale, 500 * scale], abs=2)
    assert predicted[1] < 300 * scale - 10  # the tag stands on the box


def test_the_sheet_lays_images_out_in_columns() -> None:
    entry = (_gray(352, 288), (np.zeros((0, 4)), np.zeros(0, np.int64)), ImageDetections.empty())
    narrow, wide = (
        detection_sheet([entry] * 4, ["a"], columns=2),
        detection_sheet([entry] * 4, ["a"], columns=4),
    )
    assert narrow.width < wide.width
    assert narrow.height > wide.height
    assert detection_sheet([entry], ["a"]).width < 2 * TILE_WIDTH  # no empty columns


def test_boxes_outside_the_image_and_out_of_order_are_drawn_inside_it() -> None:
    found = ImageDetections(
        np.array([[-50, -50, 2000, 2000], [300, 300, 200, 200], [np.nan] * 4]),
        np.array([0.9, 0.8, 0.7]),
        np.zeros(3, np.int64),
    )
    sheet = detection_sheet([(_gray(), (np.zeros((0, 4)), np.zeros(0, np.int64)), found)], ["a"])
    assert sheet.width == TILE_WIDTH + 24


def test_an_empty_sheet_and_an_unknown_class_are_refused() -> None:
    with pytest.raises(DataError, match="sheet: expected at least one image, found none"):
        detection_sheet([], ["a"])
    with pytest.raises(DataError, match="sheet: labels: expected class indices from 0 to 0, found 4"):
        detection_sheet([(_gray(), (np.zeros((1, 4)), np.array([4])), ImageDetections.empty())], ["a"])


def test_the_sheet_hatches_ignore_regions() -> None:
    nothing = (_gray(), (np.zeros((0, 4)), np.zeros(0, np.int64)), ImageDetections.empty())
    of_class, of_any = (Regions(np.array([[100, 100, 300, 200]], np.float32), np.array([label])) for label in (1, -1))
    plain = np.asarray(detection_sheet([nothing] * 2, ["a", "b"]))
    drawn = np.asarray(detection_sheet([nothing] * 2, ["a", "b"], regions=[of_any, of_class]))
    assert np.array_equal(plain, np.asarray(detection_sheet([nothing] * 2, ["a", "b"], regions=[None, None])))
    scale = TILE_WIDTH / 704
    tiles = np.argwhere((plain == 128).all(axis=2)).min(axis=0)
    for column, color in enumerate([GREY, class_color(1)]):
        left = tiles[1] + column * (TILE_WIDTH + 12)
        tile = drawn[tiles[0] :, left : left + TILE_WIDTH]
        rows, columns = np.nonzero((tile == color).all(axis=2))
        found = [columns.min(), rows.min(), columns.max(), rows.max()]
        assert found == pytest.approx([100 * scale, 100 * scale, 300 * scale, 200 * scale], abs=2)
        part = len(rows) / ((300 - 100) * (200 - 100) * scale**2)
        assert 0.05 < part < 0.4  # hatched and not filled
    with pytest.raises(DataError, match="sheet: labels: expected class indices from 0 to 0, found 1"):
        detection_sheet([nothing], ["a"], regions=[of_class])
