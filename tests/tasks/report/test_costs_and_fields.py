"""The report's tables of costs, of worst classes and clients, of fields, and its notes on time and published curves."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tasks.report.cost_tables import costs_table, targets_table
from tasks.report.fields import changed_from_default, common_fields
from tasks.report.html import report_html
from tasks.report.main_tables import measures_table
from tasks.report.markdown import report_markdown
from tasks.report.part_tables import own_models_table
from tasks.report.text import missed
from tasks.spec.clients import Dirichlet
from tasks.spec.data import Coco, FederatedStreet, Holdout
from tasks.spec.detector import FcosLite0Spec
from tasks.spec.detector_parts import RandomWeights
from tasks.spec.federation import FederationSpec
from tasks.spec.records import ClientSpread, PersonalMetrics
from tasks.spec.suite_records import CellResult, SuiteResult
from tasks.spec.training import TrainingSpec
from tasks.suite.summary import summarise
from tests.present import present
from tests.tasks.suite.suite_results import NOW, cell, result


def texts(table: Any) -> list[list[str]]:
    return [[f"{cell.text} ({cell.note})" if cell.note else cell.text for cell in row] for row in table.rows]


@pytest.mark.parametrize(
    ("rounds", "shown"),
    [((), ""), ((28,), "not in 28 rounds"), ((1,), "not in 1 round"), ((28, 28), "2 runs not in 28 rounds"),
     ((28, 10, 9), "3 runs not in 9 to 28 rounds")],
)  # fmt: skip
def test_runs_that_never_got_there_are_named_with_their_rounds(rounds: tuple[int, ...], shown: str) -> None:
    assert missed(rounds) == shown


def test_the_table_up_to_the_target_has_runs_that_got_there_and_those_that_did_not() -> None:
    found = result(cell("a", "federated", 1, [0.0, 0.5, 0.6]), cell("a", "federated", 2, [0.0, 0.1, 0.2]))
    assert texts(targets_table(found, summarise(found))) == [
        # The areas of the two are (0.25 + 0.55) / 2 and (0.05 + 0.15) / 2.
        ["a", "federated", "1 of 2", "1 (not in 2 rounds)", "4", "1.0 MB", "60.0 s", "0.250 ± 0.212"],
    ]  # fmt: skip
    never = found.model_copy(update={"target": 0.9})
    assert texts(targets_table(never, summarise(never)))[0][2:7] == ["0 of 2", "2 runs not in 2 rounds", "–", "–", "–"]


def test_the_worst_class_has_the_lowest_mean_over_seeds() -> None:
    """The classes' order differs by seed. The mean decides."""
    runs = [
        cell("a", "federated", 1, [0.5], per_class={"chair": 0.1, "table": 0.3, "none": None}),
        cell("a", "federated", 2, [0.5], per_class={"chair": 0.5, "table": 0.2, "none": None}),
    ]
    found = result(*runs)
    assert texts(measures_table(summarise(found)))[0][-1] == "0.250 ± 0.071 (table)"
    bare = result(cell("a", "federated", 1, [0.5], per_class={}))
    assert texts(measures_table(summarise(bare)))[0][-1] == "–"


def test_the_worst_client_is_named_for_methods_with_models_of_the_clients_own() -> None:
    def own(worst: float, client: str) -> PersonalMetrics:
        spread = ClientSpread(mean=0.5, worst=worst, worst_client=client, deviation=0.1, clients=5)
        return PersonalMetrics(figures={"map50_voc10": spread}, clients=5)

    runs = [
        cell("a", "federated", seed, [0.5], personal=own(worst, client))
        for seed, worst, client in ((1, 0.2, "3"), (2, 0.4, "5"), (3, 0.3, "3"))
    ]
    found = result(*runs)
    table = present(own_models_table(found, summarise(found)))
    assert texts(table) == [["a", "3", "0.500 ± 0.000", "0.300 ± 0.100 (client 3, 5)", "0.100 ± 0.000"]]
    assert "client 3, 5" in report_html(found)


# --- wall time ---------------------------------------------------------------------------------------------


def timed(name: str, seed: int, start: int) -> CellResult:
    """Return a run of two rounds of a minute each, from ``start`` minutes on, named by its experiment and seed."""
    run = cell(name, "federated", seed, [0.1, 0.6, 0.7], hosts=("00000001",))
    points = [
        point.model_copy(update={"committed": NOW + timedelta(minutes=start + point.round)}) for point in run.points
    ]
    return run.model_copy(update={"points": tuple(points)})


def pages(found: SuiteResult) -> list[str]:
    return [" ".join(report_html(found).split()), report_markdown(found)]


def test_wall_time_that_does_not_compare_is_marked_and_has_no_plot() -> None:
    found = result(timed("a", 1, 0), timed("a", 2, 1), timed("b", 1, 10))
    rows = texts(costs_table(found, summarise(found)))
    assert [row[4] for row in rows] == ["2.0 ± 0.0 min (machine shared)", "2.0 min"]
    assert [row[6] for row in texts(targets_table(found, summarise(found)))] == [
        "60.0 ± 0.0 s (machine shared)", "60.0 s",
    ]  # fmt: skip
    for page in pages(found):
        assert page.count("2 of 3 runs shared a machine with other runs of this report at the same time") == 1
    page = pages(found)[0]
    assert "By round and bytes" in page
    assert "by time of" not in page


def test_wall_time_of_runs_one_after_the_other_is_as_it_is() -> None:
    found = result(timed("a", 1, 0), timed("a", 2, 2))
    for page in pages(found):
        note = "no two of 2 runs shared a machine at the same time; other load on the machines is not on record"
        assert page.count(note) == 1
        assert "machine shared (" not in page
    assert "by time of a" in pages(found)[0]
    old = result(cell("a", "federated", 1, [0.1, 0.2]))
    assert "it is not on record whether 1 of 1 run shared a machine with others at the same time" in pages(old)[0]
    assert "by time of a" in pages(old)[0]


# --- published curves --------------------------------------------------------------------------------------


def test_published_curves_stand_in_the_report_of_street_alone() -> None:
    run = cell("a", "federated", 1, [0.1, 0.6])
    street = report_html(result(run, specs={"a": FederationSpec(data=FederatedStreet())}))
    assert "Beside the published curves" in street
    assert "FederatedAI/Practicing-Federated-Learning" in street
    assert "://" not in street
    assert "published" not in report_html(result(run))


# --- what was run ------------------------------------------------------------------------------------------


def test_every_field_without_its_default_is_named() -> None:
    assert changed_from_default(FederationSpec(seed=5)) == []
    spec = FederationSpec(
        max_rounds=3,
        data=Coco(name="yards", clients=Dirichlet(alpha=0.1, seed=9), holdout=Holdout()),
        detector=FcosLite0Spec(weights=RandomWeights(), frozen_blocks=0),
        training=TrainingSpec(clip_norm=None),
    )
    assert changed_from_default(spec) == [
        "max_rounds", "data.kind", "data.holdout.fraction", "data.holdout.seed", "data.holdout.least", "data.name",
        "data.clients.kind", "data.clients.seed", "data.clients.alpha", "detector.kind", "detector.weights.kind",
        "detector.frozen_blocks", "training.clip_norm",
    ]  # fmt: skip
    fields = dict(common_fields([spec, spec]))
    # The division and its seed, the initial weights, and a field that is null in place of its default.
    assert {name: fields[name] for name in fields if name.startswith(("data.clients", "detector.weights"))} == {
        "data.clients.kind": "dirichlet", "data.clients.clients": "5", "data.clients.seed": "9",
        "data.clients.alpha": "0.1", "detector.weights.kind": "random",
    }  # fmt: skip
    assert fields["training.clip_norm"] == "–"
    assert fields["data.holdout.seed"] == "1"
    assert "training.schedule.hold" not in fields


def test_initial_weights_are_named_by_default_too() -> None:
    assert dict(common_fields([FederationSpec()]))["detector.weights.kind"] == "random"
    assert common_fields([]) == []
