"""Intervals over test images come from the detections in the store."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flows.suite.detections import read_last_round
from flows.suite.image_intervals import compared_methods, matches_of
from infra.settings import Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from infra.views import Views
from tasks.metrics.detections import ImageDetections
from tasks.metrics.scored import ScoredImages, ScoredModel
from tasks.metrics.scoring import evaluation_record
from tasks.spec.federation import FederationSpec
from tasks.spec.records import Metrics
from tasks.spec.strategies import FedAdamSpec
from tasks.spec.suite_records import CellResult, SuiteResult
from tasks.spec.training import EvaluationSpec
from tasks.suite.matches import ImageMatches
from tests.records import SHA, round_record
from tests.tasks.suite.suite_results import cell, result

IMAGES = 12
BOX = np.array([[10.0, 10, 40, 40]])
CLASSES = ("chair",)


def scored(right: int, *, digest: str = SHA) -> ScoredModel:
    """Return a model that finds the one object of each image in the first ``right`` images."""
    found = ImageDetections(BOX, np.array([0.9]), np.array([0]))
    truth = tuple((BOX, np.array([0]), None) for _ in range(IMAGES))
    detections = tuple(found if image < right else ImageDetections.empty() for image in range(IMAGES))
    return ScoredModel(CLASSES, 0.001, 100, (ScoredImages(("1", "2"), "test", digest, truth, detections),))


class Stored:
    """Runs in the store, each with the detections of its last round."""

    def __init__(self, objects: ObjectStore, settings: Settings) -> None:
        self.objects, self.settings = objects, settings

    def put(self, experiment: str, seed: int, model: ScoredModel, *, detections: bool = True) -> CellResult:
        """Store round 1 of a run, and return its result. Without ``detections`` the store has the record alone."""
        evaluations = tuple(
            evaluation_record(
                item.truth, item.detections, [1.0], clients=item.clients, classes=CLASSES, test_digest=item.digest,
                spec=EvaluationSpec(), started=0.0,
            )
            for item in model.sets
        )  # fmt: skip
        score = evaluations[0].map50_voc10
        run = cell(experiment, "federated", seed, [0.0, score])
        layout = self.layout(run)
        record = round_record(1, federation=run.federation, evaluations=evaluations, metrics=Metrics(map50_voc10=score))
        self.objects.put_json(layout.marker(1), record.model_dump(mode="json"))
        if detections:
            self.objects.put_bytes(layout.detections(1), model.to_bytes())
        return run

    def layout(self, run: CellResult) -> FederationLayout:
        return FederationLayout(self.settings.s3.prefix, run.federation)

    def matches(self, run: CellResult) -> ImageMatches | None:
        """Return the matches of a run's last round, if the store has any."""
        scored = read_last_round(self.objects, self.settings, run, Views())
        return None if scored is None else matches_of(scored)


@pytest.fixture
def stored(object_store: ObjectStore, command_settings: Settings) -> Stored:
    return Stored(object_store, command_settings)


def suite(*runs: CellResult) -> SuiteResult:
    return result(*runs, specs={"plain": FederationSpec(), "adam": FederationSpec(strategy=FedAdamSpec())})


def test_methods_have_intervals_over_the_images_whose_detections_are_stored(stored: Stored) -> None:
    runs = [stored.put("plain", seed, scored(6)) for seed in (1, 2, 3)]
    runs += [stored.put("adam", seed, scored(8 + seed)) for seed in (1, 2, 3)]
    views = Views()
    _, adam = compared_methods(stored.objects, stored.settings, suite(*runs), views)
    assert views.failed == {}
    assert (adam.experiment, adam.rank) == ("adam", 1)
    assert adam.over_seeds == pytest.approx((3 / 12, 5 / 12))
    assert adam.over_images is not None
    low, high = adam.over_images
    assert 0 <= low < 4 / 12 < high <= 0.8


def test_runs_without_detections_or_with_several_test_sets_have_none(stored: Stored) -> None:
    base = stored.put("plain", 1, scored(6))
    found = stored.matches(base)
    assert found is not None
    assert (found.images, found.test_set) == (IMAGES, SHA)
    assert found.mean_average_precision() == pytest.approx(6 / 12)
    missing = stored.put("adam", 1, scored(8), detections=False)
    assert stored.matches(missing) is None
    one = scored(8)
    several = stored.put("adam", 2, replace(one, sets=(*one.sets, replace(one.sets[0], digest="b" * 64))))
    assert stored.matches(several) is None
    imported = cell("adam", "federated", 3, [0.0, 0.5])  # the store has no record of it
    assert stored.matches(imported) is None
    compared = compared_methods(stored.objects, stored.settings, suite(base, missing), Views())
    assert [item.over_images for item in compared] == [None, None]


def test_damaged_detections_are_noted_and_leave_out_their_interval(stored: Stored) -> None:
    runs = [stored.put("plain", 1, scored(6)), stored.put("adam", 1, scored(8))]
    stored.objects.put_bytes(stored.layout(runs[1]).detections(1), scored(9).to_bytes())  # of another model
    views = Views()
    compared = compared_methods(stored.objects, stored.settings, suite(*runs), views)
    assert list(views.failed) == [f"the detections of {runs[1].name}"]
    assert [item.over_images for item in compared] == [None, None]
    assert [item.rank for item in compared] == [None, 1]


def test_other_metrics_have_no_interval_over_images(stored: Stored) -> None:
    runs = [stored.put("plain", 1, scored(6)), stored.put("adam", 1, scored(8))]
    coco = suite(*runs).model_copy(update={"metric": "map_coco"})
    assert [item.over_images for item in compared_methods(stored.objects, stored.settings, coco, Views())] == [
        None,
        None,
    ]
