"""Read the detections of a suite's runs from the store, and analyse them for the report."""

from __future__ import annotations

from flows.stored.detections import read_scored
from infra.settings import Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from infra.views import Views
from tasks.analysis.analyse import analyse
from tasks.metrics.scored import ScoredModel
from tasks.report.detections import CellAnalysis
from tasks.spec.base import RECORD_VERSION
from tasks.spec.records import RoundRecord
from tasks.spec.suite_records import CellResult, SuiteResult
from tasks.whole import find_whole


def read_analyses(objects: ObjectStore, settings: Settings, result: SuiteResult, views: Views) -> list[CellAnalysis]:
    """Return the analysis of the last round of each experiment's first federated run, in the experiments' order.

    An experiment without one has that of its first reference. Experiments whose detections are not in the store are
    left out. ``views`` notes those that cannot be read.
    """
    cells: dict[str, CellResult] = {}
    for cell in sorted(result.cells, key=lambda cell: cell.role != "federated"):
        cells.setdefault(cell.experiment, cell)
    chosen = [cells[name] for name in dict.fromkeys(cell.experiment for cell in result.cells)]
    found = []
    for cell in chosen:  # one at a time: all detections of a suite would fill the memory
        scored = read_last_round(objects, settings, cell, views)
        if scored is None:
            continue
        with views.showing(f"the analysis of {cell.name}'s detections"):
            found.append(CellAnalysis(cell.experiment, cell.seed, cell.last.round, analyse(scored)))
    return found


def read_last_round(objects: ObjectStore, settings: Settings, cell: CellResult, views: Views) -> ScoredModel | None:
    """Return the detections of the last round of ``cell``, on ``cell.on``.

    None: they are not in the store, or cannot be read, which ``views`` notes.
    """
    layout = FederationLayout(settings.s3.prefix, cell.federation)
    with views.showing(f"the detections of {cell.name}"):
        record = find_whole(objects, layout.marker(cell.last.round), RoundRecord, RECORD_VERSION)
        scored = None if record is None else read_scored(objects, layout, record)
        return None if scored is None else scored.on(cell.on)
    return None
