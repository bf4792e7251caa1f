"""The parent run of a suite: its curves, its children, and the pages that draw them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from infra.tracking.client import client_at
from infra.tracking.federation import RoundFigures
from infra.tracking.metric_page import find_metric_page
from infra.tracking.suite import CellFigures, SuiteFigures, SuiteTracker, track_suite
from tests.infra.tracking.test_federation import logged, open_tracker

MEAN = "average_precision/map50_voc10/laptop mean"


def open_suite(uri: str) -> SuiteTracker:
    location = str(Path(uri.removeprefix("sqlite:///")).parent / "artifacts")
    return SuiteTracker.open(uri, "streets", "night", {"fedbench.suite": "smoke"}, location=location)


def curves(*values: float, seconds: int = 60) -> list[RoundFigures]:
    time = datetime.fromtimestamp(seconds, UTC)
    return [RoundFigures(number, time, {MEAN: value}) for number, value in enumerate(values)]


def points(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client_at(uri).get_metric_history(run_id, key)]


def test_a_suite_has_one_parent_run_and_points_logged_again_stay_one(uri: str) -> None:
    first = open_suite(uri)
    assert first.log_curves(curves(0.1, 0.2))
    first.close("KILLED")
    second = open_suite(uri)
    assert second.run_id == first.run_id
    assert client_at(uri).get_run(first.run_id).info.status == "RUNNING"
    # The time is that of the last cell which committed the round, so it changes with each cell.
    for seconds in (60, 90):
        assert second.log_curves(curves(0.1, 0.2, seconds=seconds))
        assert points(uri, first.run_id, MEAN) == [(0, 0.1), (1, 0.2)]
    assert second.log_curves(curves(0.1, 0.2, 0.3))
    assert points(uri, first.run_id, MEAN) == [(0, 0.1), (1, 0.2), (2, 0.3)]


def test_a_suite_with_other_results_gets_another_parent_run(uri: str) -> None:
    tracker = open_suite(uri)
    tracker.log_curves(curves(0.1, 0.2))
    assert not tracker.log_curves(curves(0.1, 0.3))
    assert points(uri, tracker.run_id, MEAN) == [(0, 0.1), (1, 0.2)]
    suite = SuiteFigures("night", {}, {}, [], sorted_by="final/loss", complete=True, curves=curves(0.1, 0.3))
    track_suite(uri, "streets", suite, {})
    old, new = (client_at(uri).get_run(tracker.run_id), open_suite(uri))
    assert (old.info.run_name, old.info.status) == ("night (superseded)", "KILLED")
    assert new.run_id != tracker.run_id
    assert points(uri, new.run_id, MEAN) == [(0, 0.1), (1, 0.3)]


def test_the_cells_figures_are_logged_once_below_the_parent(uri: str) -> None:
    cell = open_tracker(uri, federation="night.laptop.s1")
    figures: Any = {"final/loss": 2.0}
    for loss in (2.0, 2.0, 1.0):
        figures = {"final/loss": loss, "final/rounds": 3.0}
        cells = [CellFigures("night.laptop.s1", "laptop · seed 1", {"fedbench.role": "federated"}, figures)]
        track_suite(uri, "streets", SuiteFigures("night", {}, {}, cells, "final/loss", complete=False), {"a.txt": b"a"})
    run, parent = client_at(uri).get_run(cell.run_id), open_suite(uri)
    assert run.info.run_name == "laptop · seed 1"
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id
    assert points(uri, cell.run_id, "final/rounds") == [(0, 3.0)]
    assert run.data.metrics["final/loss"] == 1.0


def test_the_page_draws_the_first_metric_that_a_run_has(uri: str) -> None:
    runs = [open_tracker(uri, federation=name) for name in ("one", "two")]
    for run in runs:
        run.log_round(logged(1, {"global/map50_voc10": 0.5}))
    metrics = ["average_precision/map50_voc10", "global/map50_voc10"]

    def query(*names: str) -> dict[str, Any] | None:
        page = find_metric_page(uri, "streets", names, metrics, "http://h:5000/")
        if page is None:
            return None
        assert page.startswith("http://h:5000/#/metric?")
        return {key: json.loads(value) for key, (value,) in parse_qs(urlsplit(urlsplit(page).fragment).query).items()
                if key in ("runs", "metric", "experiments", "plot_metric_keys")}  # fmt: skip

    found = query("one", "two", "nobody")
    assert found == {
        "runs": [run.run_id for run in runs],
        "metric": "global/map50_voc10",
        "experiments": [runs[0].experiment_id],
        "plot_metric_keys": ["global/map50_voc10"],
    }
    runs[1].log_round(logged(2, {"average_precision/map50_voc10": 0.5}))
    assert (query("one", "two") or {})["metric"] == "average_precision/map50_voc10"
    assert query("one") is None
    assert find_metric_page(uri, "nowhere", ["one", "two"], metrics, "http://h") is None
