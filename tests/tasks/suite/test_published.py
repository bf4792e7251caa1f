"""The published curves: what is read from the file, and which of them stand beside which runs."""

from __future__ import annotations

import pytest

from tasks.spec.data import FederatedStreet
from tasks.spec.federation import FederationSpec
from tasks.spec.presets import preset
from tasks.suite.published import curves_beside, published_curves, published_split, street_splits, what_differs
from tests.tasks.suite.suite_results import cell, result


def test_every_curve_has_its_six_points() -> None:
    curves = published_curves()
    assert len(curves) == 14
    assert {curve.rounds for curve in curves} == {(100, 200, 400, 600, 800, 1000)}
    assert all(0 < value < 1 for curve in curves for value in curve.values)
    found = {curve.label: curve.values for curve in curves}
    assert found["YOLOv3, 5 clients, E 5, B 8"] == (0.81, 0.84, 0.851, 0.856, 0.861, 0.863)
    assert found["Faster R-CNN, centralised, E 1, B 1"][-1] == 0.860


@pytest.mark.parametrize(
    ("split", "values"),
    [(5, {"yolov3": 0.870, "faster-rcnn-vgg16": 0.858}), (20, {"yolov3": 0.846, "faster-rcnn-vgg16": 0.837})],
)
def test_the_best_curve_of_each_detector_stands_beside_runs_of_as_many_clients(
    split: int, values: dict[str, float]
) -> None:
    curves = curves_beside(split)
    assert {curve.detector: curve.values[-1] for curve in curves if curve.clients == split} == values
    assert {curve.detector: curve.values[-1] for curve in curves if curve.clients == 1} == {
        "yolov3": 0.876, "faster-rcnn-vgg16": 0.860,
    }  # fmt: skip


def test_only_federated_runs_on_street_as_published_have_curves_beside_them() -> None:
    street = FederationSpec(data=FederatedStreet(split=20))
    assert (published_split(street), published_split(FederationSpec())) == (20, None)
    both = result(
        cell("a", "federated", 1, [0.5]), cell("b", "federated", 1, [0.5]), cell("c", "centralised", 1, [0.5]),
        specs={"a": street, "b": FederationSpec(), "c": FederationSpec(data=FederatedStreet(split=5))},
    )  # fmt: skip
    assert street_splits(both) == street_splits(both, "a") == [20]
    assert street_splits(both, "b") == street_splits(both, "c") == []
    assert street_splits(both.model_copy(update={"metric": "map_coco"})) == []


def test_another_division_of_street_has_no_curves_beside_it() -> None:
    street = FederatedStreet(split=5)
    object.__setattr__(street, "division", "clean")
    assert published_split(FederationSpec().model_copy(update={"data": street})) is None


def test_the_note_names_source_and_differences() -> None:
    note = what_differs([preset("street5_laptop"), preset("street5")])
    for part in (
        "arXiv 1910.11089", "FederatedAI/Practicing-Federated-Learning", "about 0.003", "YOLOv3 at 416 px",
        "Faster R-CNN over ImageNet’s VGG16", "1,000 rounds", "fcos-lite0 at 352 × 288 px", "at most 28 rounds",
    ):  # fmt: skip
        assert part in note
