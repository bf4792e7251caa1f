"""Compare a result's methods with intervals over the test images, from the detections that the store has."""

from __future__ import annotations

from flows.stored.runs import opened_store
from flows.suite.detections import read_last_round
from infra.settings import Settings
from infra.store.objects import ObjectStore
from infra.views import Views
from tasks.metrics.scored import ScoredModel
from tasks.spec.suite_records import SuiteResult
from tasks.suite.matches import ImageMatches
from tasks.suite.methods import Compared, compare_methods


def compared_methods(objects: ObjectStore, settings: Settings, result: SuiteResult, views: Views) -> list[Compared]:
    """Return the compared methods of ``result``. They have intervals over test images if the store has detections.

    Detections that cannot be read are noted in ``views``, and those methods have no such interval.
    """
    compared = compare_methods(result)
    if not compared or result.metric != "map50_voc10":
        return compared
    names, matches = {item.experiment for item in compared}, {}
    runs = {cell.federation: cell for cell in result.cells if cell.experiment in names and cell.role == "federated"}
    for federation, cell in runs.items():  # one at a time, as in read_analyses
        scored = read_last_round(objects, settings, cell, views)
        found = None if scored is None else matches_of(scored)
        if found is not None:
            matches[federation] = found
    return compare_methods(result, matches)


def stored_methods(settings: Settings, result: SuiteResult, views: Views) -> list[Compared]:
    """Return the same, from the store of ``settings``, which is opened only if there are methods to compare."""
    if not compare_methods(result):
        return []
    with opened_store(settings) as objects:
        return compared_methods(objects, settings, result, views)


def matches_of(scored: ScoredModel) -> ImageMatches | None:
    """Return which detections are right, by image.

    None: they are of several sets of images, over which a run's figure is a mean, or of clients' own models.
    """
    if scored.personal or len(scored.sets) != 1:
        return None
    (images,) = scored.sets
    return ImageMatches.of(
        images.matches(scored), images=len(images), classes=len(scored.classes), test_set=images.digest
    )
