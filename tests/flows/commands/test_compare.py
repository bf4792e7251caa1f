"""``fedbench compare``: its tables and messages about runs in a real store, and its files."""

from __future__ import annotations

import csv
import io
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from flows.commands import compare
from flows.commands.compare_table import comparison_table
from infra.settings import Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from infra.store.suite_layout import SuiteLayout
from tasks.spec.federation import FederationSpec, parse_spec
from tasks.spec.plans import WeightRef
from tasks.spec.records import Metrics, RoundRecord
from tasks.spec.references import local_only, twin
from tasks.spec.training import TrainingSpec
from tests.flows.command import fedbench
from tests.records import SHA, client_info, evaluation_record, round_record, update_record

SPEC = FederationSpec(max_rounds=4, training=TrainingSpec(local_epochs=2))
TWIN = twin(SPEC)
OTHER = "b" * 64
WEIGHTS = WeightRef(key="k", sha256=SHA, bytes=5_000_000)
# Training images of each client, 40 in total.
SIZES = {"1": 25, "2": 15}
POOLED = {"all": 40}


def record_of(
    name: str, number: int, score: float | None, sizes: dict[str, int], test: str, cohort: tuple[str, ...] | None = None
) -> RoundRecord:
    """Return a round of ``cohort`` with 10 s and 5 MB each way per client. ``map_coco`` falls while the others rise."""
    clients = tuple(
        client_info(
            client, train_size=size, test_size=8, test_digest=test, class_counts={"chair": 2 * size, "table": 0}
        )
        for client, size in sizes.items()
    )
    updates = tuple(
        update_record(
            client,
            federation=name,
            round=number,
            weights=WEIGHTS,
            train_size=sizes[client],
            train_loss=2.0,
            bytes_down=5_000_000,
        )
        for client in (cohort or tuple(sizes) if number else ())
    )
    by_class = {"chair": score, "table": None}
    metrics = Metrics(
        loss=3.0, map50_voc10=score, map50_voc07=score, map_coco=None if score is None else 0.5 - score, recall=0.75,
        per_class=by_class,
    )  # fmt: skip
    evaluation = evaluation_record(
        *sizes, test_digest=test, test_size=8, loss=3.0, map50_voc10=score, recall=0.75, per_class=by_class
    )
    return round_record(
        number,
        federation=name,
        clients=clients,
        updates=updates,
        model=WEIGHTS,
        evaluations=(evaluation,),
        metrics=metrics,
        seconds={"request_update": 8.0, "stop_and_eval": 2.0},
        bytes_up=2_000_000,
        bytes_down=500_000,
    )


class Store:
    """A prefix of the session's store, with the runs that a test stores there."""

    def __init__(self, objects: ObjectStore, settings: Settings) -> None:
        self.objects, self.settings, self._hours = objects, settings, 0

    def put(
        self, name: str, spec: FederationSpec, scores: list[float | None], sizes: dict[str, int], test: str = SHA,
        **more: Any,
    ) -> None:  # fmt: skip
        layout = FederationLayout(self.settings.s3.prefix, name)
        self.objects.put_json(layout.spec, spec.model_dump(mode="json"))
        self._hours += 1  # runs follow each other, so that none shares the machine with another
        for number, score in enumerate(scores):
            record = record_of(name, number, score, sizes, test, **more)
            committed = record.committed + timedelta(hours=self._hours, seconds=10 * number)
            record = record.model_copy(update={"committed": committed})
            self.objects.put_json(layout.marker(number), record.model_dump(mode="json"))

    def read(self, *names: str, metric: Any = "map50_voc10") -> list[compare.Compared]:
        return compare.read_compared(self.settings, names, metric)


@pytest.fixture
def store(object_store: ObjectStore, command_settings: Settings) -> Store:
    return Store(object_store, command_settings)


def rows(compared: list[compare.Compared], metric: Any = "map50_voc10") -> dict[str, list[str]]:
    """Return the table's cells by the label of their row."""
    console = Console(file=io.StringIO(), width=200, record=True)
    table = comparison_table(compared, metric)
    console.print(table)
    labels = [str(cell) for cell in table.columns[0].cells]
    cells = [[str(cell) for cell in column.cells] for column in table.columns[1:]]
    assert "at the best round" in console.export_text()
    return {label.strip(): [column[row] for column in cells if row < len(column)] for row, label in enumerate(labels)}


def test_figures_costs_and_differences_against_the_first(store: Store) -> None:
    store.put("apart", SPEC, [0.0, 0.2, 0.25, 0.25, 0.1], SIZES)
    store.put("twin", TWIN, [0.0, 0.3, 0.375], POOLED)
    found = rows(store.read("apart", "twin"))
    assert found["state"] == ["finished", "stopped"]
    assert found["rounds"] == ["4/4", "2/4"]
    assert found["clients"] == ["2", "centralised"]
    assert found["image passes"] == ["8", "4"]
    assert found["best round"] == ["2", "2"]  # the first of equally good rounds
    assert found["map50_voc10 best"] == ["0.250", "0.375 (+0.125)"]
    assert found["map50_voc10 last"] == ["0.100", "0.375 (+0.275)"]
    assert found["map_coco"] == ["0.250", "0.125 (−0.125)"]
    assert found["map50_coco"] == ["–", "–"]
    assert found["recall"] == ["0.750", "0.750 (0.000)"]
    assert found["chair"] == ["0.250", "0.375 (+0.125)"]
    assert found["table"] == ["–", "–"]
    assert found["seconds"] == ["50", "30 (×0.60)"]
    assert found["MB exchanged"] == ["80.0", "–"]
    assert found["MB moved"] == ["12.5", "7.5 (×0.60)"]


@pytest.mark.parametrize(
    ("scores", "cells"),
    [
        ((0.0012, 0.0006), ["0.0012", "0.0006 (−0.0006)"]),
        ((0.25, 0.2514), ["0.2500", "0.2514 (+0.0014)"]),
        ((0.25, 0.2516), ["0.250", "0.252 (+0.002)"]),
        ((0.25, 0.25), ["0.250", "0.250 (0.000)"]),
        ((None, 0.0006), ["–", "0.001"]),
    ],
)
def test_a_row_with_a_small_difference_has_a_digit_more(
    store: Store, scores: tuple[float | None, ...], cells: list[str]
) -> None:
    for name, score in zip(("a", "b"), scores, strict=True):
        store.put(name, SPEC, [0.0, score], SIZES)
    found = rows(store.read("a", "b"))
    assert found["map50_voc10 last"] == cells
    assert found["recall"] == ["0.750", "0.750 (0.000)"]


def test_methods_are_named_with_their_fields_unless_all_are_fedavg(store: Store) -> None:
    adam = parse_spec({**SPEC.model_dump(), "strategy": {"kind": "fedadam", "server_lr": 0.03}}, source="x")
    store.put("plain", SPEC, [0.0, 0.2], SIZES)
    store.put("adam", adam, [0.0, 0.2], SIZES)
    store.put("twin", TWIN, [0.0, 0.2], POOLED)
    assert rows(store.read("plain", "adam", "twin"))["method"] == ["fedavg", "fedadam (server_lr 0.03)", "–"]
    assert "method" not in rows(store.read("plain", "twin"))
    (line,) = compare.differences(store.read("plain", "adam"))
    assert "strategy.kind fedavg → fedadam, strategy.server_lr – → 0.03, strategy.tau – → 0.001" in line


def test_the_best_round_is_by_the_chosen_metric(store: Store) -> None:
    for name in ("a", "b"):
        store.put(name, SPEC, [None, 0.2, 0.1, 0.3], SIZES)
    compared = store.read("a", "b", metric="map_coco")
    assert [item.best_round for item in compared] == [2, 2]
    found = rows(compared, "map_coco")
    assert found["map_coco best"] == ["0.400", "0.400 (0.000)"]
    assert found["map50_voc10"] == ["0.100", "0.100 (0.000)"]


def test_the_gap_to_the_twin_is_at_equal_image_passes(store: Store) -> None:
    store.put("apart", SPEC, [0.0, 0.2, 0.25, 0.3, 0.1], SIZES)
    store.put("twin", TWIN, [0.0, 0.3, 0.375], POOLED)
    line = "gap to centralised: −0.125 map50_voc10 after 4 image passes; best against best −0.075"
    assert compare.gaps(store.read("apart", "twin"), "map50_voc10") == [line]
    assert compare.gaps(store.read("twin", "apart"), "map50_voc10") == [line]
    store.put("other", parse_spec({"seed": 3}, source="x"), [0.0, 0.2], SIZES)
    assert compare.gaps(store.read("apart", "other"), "map50_voc10") == []
    assert compare.gaps(store.read("apart", "other", "twin"), "map50_voc10") == [f"apart: {line}"]
    store.put("fewer", SPEC, [0.0, 0.2], {"1": 25})  # a client never took part, so the images differ
    assert compare.gaps(store.read("fewer", "twin"), "map50_voc10") == []
    store.put("blind", SPEC, [None, None], SIZES)
    assert compare.gaps(store.read("blind", "twin"), "map50_voc10") == [
        "gap to centralised: not both have a map50_voc10 after 2 image passes"
    ]


def test_a_round_of_some_clients_counts_as_a_part_of_an_image_pass(store: Store) -> None:
    store.put("some", SPEC, [0.0, 0.1, 0.2], SIZES, cohort=("1",))
    store.put("twin", TWIN, [0.0, 0.3, 0.5], POOLED)
    some, _ = compared = store.read("some", "twin")
    assert [costs.passes for costs in some.costs] == [0.0, 1.25, 2.5]
    assert [costs.images for costs in some.costs] == [0, 50, 100]
    assert compare.gaps(compared, "map50_voc10")[0].startswith("gap to centralised: −0.100 map50_voc10 after 2.5 ")


def test_different_test_sets_and_rules_give_warnings_that_name_the_fields(store: Store) -> None:
    lenient = parse_spec({**SPEC.model_dump(), "evaluation": {"score_threshold": 0.05}}, source="x")
    store.put("first", SPEC, [0.1, 0.2], SIZES)
    store.put("same", SPEC, [0.1, 0.2], SIZES)
    store.put("moved", SPEC, [0.1, 0.2], SIZES, test=OTHER)
    store.put("lenient", lenient, [0.1, 0.2], SIZES)
    compared = store.read("first", "same", "moved", "lenient")
    assert compare.warnings(compared) == [
        "the test sets of first and moved differ: their figures are not of the same images and boxes",
        "first and lenient are evaluated by different rules: see the fields below",
    ]
    assert compare.differences(compared) == [
        "same is the same experiment as first",
        "moved is the same experiment as first",
        "lenient differs from first in: evaluation.score_threshold 0.001 → 0.05",
    ]


def test_the_gain_over_local_only_uses_the_seeds_that_have_both(store: Store) -> None:
    for seed in (1, 2):
        spec = SPEC.model_copy(update={"seed": seed})
        store.put(f"apart-{seed}", spec, [0.0, 0.2, 0.4 + seed / 10], SIZES)
        for device, size in SIZES.items():
            alone = local_only(spec, device)
            store.put(f"alone-{seed}-{device}", alone, [0.0, 0.1, 0.1 * int(device)], {device: size})
    names = ["apart-1", "apart-2", "alone-1-1", "alone-1-2", "alone-2-1", "alone-2-2"]
    compared = store.read(*names)
    line = "apart: gain over local only: +0.400 ± 0.071 map50_voc10 after 4 image passes, 2 seeds, mean over 2 devices"
    assert compare.gains(compare.result_of(compared, "map50_voc10", 0.5)) == [line]
    assert compare.gaps(compared, "map50_voc10") == []
    found = rows(compared)
    assert found["clients"] == ["2", "2", "1 alone", "2 alone", "1 alone", "2 alone"]
    assert found["MB exchanged"][2] == "–"


def test_the_command_prints_all_and_writes_a_report_plots_and_every_round(store: Store, tmp_path: Path) -> None:
    store.put("apart", SPEC, [0.0, 0.2, 0.25], SIZES)
    store.put("its-twin", TWIN, [0.0, 0.3, 0.375], POOLED, test=OTHER)
    folder = tmp_path / "new" / "figures"
    result = fedbench("compare", "apart", "its-twin", "--target", "0.3", "--out", str(folder))
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].split() == ["apart", "its-twin"]
    assert max(len(line.rstrip()) for line in lines[: lines.index(next(x for x in lines if "MB moved" in x))]) <= 100
    assert any(line.startswith("warning: the test sets of apart and its-twin differ") for line in lines)
    assert any(line.startswith("gap to centralised: −0.125 map50_voc10 after 4 image passes") for line in lines)
    assert "its-twin differs from apart in: data.pooled false → true" in lines
    with Image.open(folder / "by-round.png") as picture:
        assert picture.width > 500
    assert (folder / "by-class-apart.svg").read_text().startswith("<?xml")
    assert sorted({path.name.split(".")[0] for path in folder.iterdir()}) == [
        "by-bytes", "by-class-apart", "by-round", "by-time", "comparison", "report", "table",
    ]  # fmt: skip
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "apart is stopped after round 2 of 4: its last round is not its end" in page
    assert "the test sets of apart and its-twin differ" in page
    assert "−0.125" in page
    assert "the target is map50_voc10 0.3" in page
    assert r"apart & $0.250$ & $0.375$ & $-0.125$ \\" in (folder / "table.tex").read_text()
    assert any(line.startswith(f"written: {folder}/report.html; beside it by-bytes.png, ") for line in lines)
    with (folder / "comparison.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["federation"], row["role"], row["round"], row["passes"]) for row in table][2:4] == [
        ("apart", "federated", "2", "4.0"), ("its-twin", "centralised", "0", "0.0"),
    ]  # fmt: skip
    assert table[5]["map50_voc10"] == "0.375"
    assert table[5]["map50_coco"] == ""


def test_without_out_the_folder_is_named_after_the_runs(store: Store) -> None:
    settings = store.settings
    assert compare.default_folder(settings, ["a", "b"]) == settings.home / "comparisons" / "a+b"
    long = compare.default_folder(settings, ["a" * 90, "b" * 90])
    assert len(long.name) == 100
    assert long != compare.default_folder(settings, ["a" * 90, "b" * 91])


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("one",), "RUN: expected at least two federations to compare, found 1"),
        (("one", "one"), "RUN: expected each federation once, found one more than once"),
        (
            ("one", "nine"),
            "nine: expected a federation, found a suite run (fedbench suite show nine); its federations: nine.a.s1",
        ),
        (("one", "nobody"), "nobody: no such federation in the store; expected one of: empty, nine.a.s1, one"),
        (("one", "empty"), "empty: expected at least one committed round to compare, found none"),
        (("one", "../x"), "federation: expected letters, digits"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(store: Store, names: tuple[str, ...], says: str) -> None:
    store.put("one", SPEC, [0.1], SIZES)
    store.put("empty", SPEC, [], SIZES)
    store.put("nine.a.s1", SPEC, [0.1], SIZES)
    store.objects.put_json(SuiteLayout(store.settings.s3.prefix, "nine").suite, {})
    result = fedbench("compare", *names)
    assert result.exit_code == 2
    assert says in result.output
    assert "Traceback" not in result.output


def test_a_folder_that_cannot_be_written_is_refused(store: Store, tmp_path: Path) -> None:
    for name in ("a", "b"):
        store.put(name, SPEC, [0.1], SIZES)
    (tmp_path / "file").write_text("")
    result = fedbench("compare", "a", "b", "--out", str(tmp_path / "file" / "x"))
    assert result.exit_code == 2
    assert "the comparison cannot be written: Not a directory" in result.output


@pytest.mark.parametrize(("value", "shown"), [(0.0004, "0.000"), (-0.0004, "0.000"), (-0.043, "−0.043"), (1, "+1.000")])
def test_a_difference_has_a_sign_unless_it_rounds_to_zero(value: float, shown: str) -> None:
    assert compare.signed(value) == shown
