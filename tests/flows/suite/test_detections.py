"""A suite's report has the detections of each experiment's first run, as far as the store has them."""

from __future__ import annotations

import pytest

from flows.suite.detections import read_analyses, read_last_round
from infra.settings import Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from infra.views import Views
from tasks.metrics.voc import evaluate_voc
from tasks.spec.suite import Role
from tasks.spec.suite_records import CellResult, Point, SuiteResult
from tests.records import evaluation_record, result_of_cell, result_of_suite, round_record
from tests.tasks.metrics.scenes import CLASSES
from tests.tasks.metrics.test_scored import scored_model


def cell(experiment: str, role: Role, seed: int, last: int = 1) -> CellResult:
    points = tuple(Point(round=number, figures={}, passes=number, seconds=1, exchanged=1) for number in range(last + 1))
    return result_of_cell(experiment, role, seed, federation=f"{experiment}.{role}.{seed}", points=points)


@pytest.fixture
def result() -> SuiteResult:
    cells = (
        cell("b", "centralised", 1), cell("b", "federated", 2), cell("b", "federated", 1),
        cell("a", "local-only", 1), cell("old", "federated", 1), cell("imported", "federated", 1),
    )  # fmt: skip
    return result_of_suite(*cells)


@pytest.fixture
def stored(object_store: ObjectStore, settings: Settings, result: SuiteResult) -> ObjectStore:
    """Return a store with the last rounds of all cells but the imported one. The old one has no detections."""
    for number, item in enumerate(result.cells[:-1]):
        scored = scored_model(number + 30, sets=1)
        (images,) = scored.sets
        found = evaluate_voc(images.truth, images.detections, CLASSES, score_threshold=0.2, max_per_class=3)
        evaluation = evaluation_record(*images.clients, test_digest=images.digest, per_class=found.per_class)
        layout = FederationLayout(settings.s3.prefix, item.federation)
        record = round_record(1, federation=item.federation, evaluations=(evaluation,))
        object_store.put_json(layout.marker(1), record.model_dump(mode="json"))
        if item.experiment != "old":
            object_store.put_bytes(layout.detections(1), scored.to_bytes())
    return object_store


def test_the_first_federated_run_is_analysed_else_the_first_reference(
    stored: ObjectStore, settings: Settings, result: SuiteResult
) -> None:
    views = Views()
    analyses = read_analyses(stored, settings, result, views)
    assert [item.title for item in analyses] == ["b, seed 2, round 1", "a, seed 1, round 1"]
    assert views.failed == {}
    expected = scored_model(31, sets=1)
    assert analyses[0].analysis.images == len(expected.truth)
    every = [cell.federation for cell in result.cells if read_last_round(stored, settings, cell, views) is not None]
    assert every == ["b.centralised.1", "b.federated.2", "b.federated.1", "a.local-only.1"]


def test_damaged_detections_are_noted_and_left_out(
    stored: ObjectStore, settings: Settings, result: SuiteResult
) -> None:
    stored.put_bytes(FederationLayout(settings.s3.prefix, "b.federated.2").detections(1), b"damaged")
    views = Views()
    analyses = read_analyses(stored, settings, result, views)
    assert [item.experiment for item in analyses] == ["a"]
    (reason,) = views.failed.values()
    assert "detections.npz: expected detections in numpy's .npz format" in reason
