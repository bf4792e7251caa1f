"""A suite's report has the types of errors of its experiments as a table, as CSV and in plots."""

from __future__ import annotations

import csv
import io

import pytest

from tasks.analysis.analyse import analyse
from tasks.analysis.error_types import ERROR_TYPES
from tasks.report.detections import CellAnalysis, errors_table
from tasks.report.files import report_parts
from tests.tasks.figures.test_detections import NOTHING, SCORED
from tests.tasks.report.test_report import Page
from tests.tasks.suite.suite_results import cell, result

ANALYSES = [CellAnalysis("<b>a", 7, 2, analyse(SCORED)), CellAnalysis("b", 1, 2, analyse(NOTHING))]


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    suite = result(cell("a", "federated", 7, [0.1]), cell("b", "federated", 1, [0.1]))
    return {name: make() for name, make in report_parts(suite, analyses=ANALYSES).items()}


def test_the_table_has_each_types_gain_and_number() -> None:
    table = errors_table(ANALYSES)
    assert list(table.head) == ["experiment", "AP50", *ERROR_TYPES, "false positives", "false negatives"]
    texts = [[cell.text for cell in row] for row in table.rows]
    assert texts[0] == ["<b>a", "0.833", "0.000", "0.000", "0.000", "0.000", "0.167", "0.000", "0.167", "0.000"]
    # The only detection has the wrong class. Without the two missed baskets, or all three objects that are not found,
    # this detection still makes the AP of its class 0.
    assert texts[1] == ["b", "0.000", "0.500", "0.000", "0.000", "0.000", "0.000", "0.000", "0.000", "0.000"]
    assert [cell.note for cell in table.rows[1]][2:] == [f"n = {count}" for count in (1, 0, 0, 0, 0, 2, 1, 3)]


def test_the_page_shows_the_table_and_three_plots_of_each_experiment(files: dict[str, bytes]) -> None:
    page = Page(files["report.html"].decode())
    rows = page.table("ΔAP by type of errors")
    assert rows[1][:2] == ["<b>a seed 7", "0.833"]
    assert "What goes wrong" in page.words
    pictures = [str(attributes["alt"]) for tag, attributes in page.tags if tag == "img"]
    assert sum("of <b>a, seed 7, round 2" in text for text in pictures) == 3
    assert sum(text.startswith("Confusion matrix of") for text in pictures) == 2


def test_the_files_have_each_experiment(files: dict[str, bytes]) -> None:
    for name in ("precision-recall", "confusion", "errors"):
        assert files[f"{name}-b.png"].startswith(b"\x89PNG")
    rows = list(csv.DictReader(io.StringIO(files["errors.csv"].decode())))
    assert len(rows) == 16
    assert rows[4] | {"ap_gain": ""} == {
        "experiment": "<b>a", "seed": "7", "round": "2", "error": "background", "count": "1", "ap_gain": "",
    }  # fmt: skip


def test_without_detections_the_report_is_as_before() -> None:
    suite = result(cell("a", "federated", 1, [0.1]))
    page = Page(report_parts(suite)["report.html"]().decode())
    assert "What goes wrong" not in page.words
