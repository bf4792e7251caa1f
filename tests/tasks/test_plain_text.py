"""Untrusted texts in every form that the core writes: one line, Markdown, HTML, LaTeX, CSV, plots, a model's card."""

from __future__ import annotations

import csv
import io
import re
import warnings

import markdown as python_markdown
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image

from tasks.errors import DataError
from tasks.figures.boxes import draw_detections
from tasks.figures.plots import class_by_device_plot
from tasks.figures.sheet import detection_sheet
from tasks.figures.suite import classes_plot
from tasks.metrics.detections import ImageDetections
from tasks.models.file import ModelCard, card_text
from tasks.plain_text import (
    LIMIT,
    link_target,
    markdown,
    plain,
    plain_lines,
    plain_name,
    plot_label,
    spreadsheet_cell,
    visible,
)
from tasks.report.csv import rounds_csv
from tasks.report.html import report_html
from tasks.report.latex import escaped, latex_tables
from tasks.report.markdown import report_markdown
from tasks.spec.detector import YoloV3TinySpec
from tasks.spec.suite_records import FailedCell
from tasks.suite.summary import summarise
from tests.hostile_texts import HOSTILE, Html, commands, hostile
from tests.tasks.suite.suite_results import between, cell, result

# Two readers of Markdown: one for CommonMark with GitHub's tables, one for the older rules.
COMMONMARK = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def pages(source: str) -> list[Html]:
    return [Html(COMMONMARK.render(source)), Html(python_markdown.markdown(source, extensions=["tables"]))]


def words(text: str) -> str:
    return " ".join(text.split())


# --- one line ----------------------------------------------------------------------------------------------


def test_names_that_differ_look_different() -> None:
    names = ["car", "car\n", "car ", " car", "c ar", "c  ar", "c\tar", "c\u00a0ar", "c\x00ar", "c\u2028ar", "car\r\n"]
    shown = [plain_name(name) for name in names]
    assert len(set(shown)) == len(names)
    assert all(name.isprintable() and len(name.split()) < 3 for name in shown)
    assert shown[:3] == ["car", "car\\n", "car\\x20"]
    for name in ("traffic light", "交通灯", "[/b]", "a$b_$c", "x" * 80):
        assert plain_name(name) == name
    assert plain_name("x" * 81) == "x" * 79 + "…"
    assert len(plain_name(" " * 900)) == len(plain_name("\n" * 900)) == 80


@hostile
def test_a_plain_text_is_one_short_line_without_commands(text: str) -> None:
    shown = plain(text)
    assert commands(shown) == set()
    assert "\n" not in shown
    assert len(shown) <= LIMIT
    assert shown.encode()
    assert shown.endswith("…") == (len(text) > LIMIT)


def test_characters_without_a_glyph_are_escaped_and_letters_stay() -> None:
    assert plain("a\x1b[2J\x9b\u202eb\x00\ud83d") == "a\\x1b[2J\\x9b\\u202eb\\x00\\ud83d"
    assert plain(" straße\t交通灯 \r\n é\u2028x ") == "straße 交通灯 é x"
    assert plain("abcdef", 4) == "abc…"
    assert plain("abcd", 4) == "abcd"
    assert plain("\x1b" * 4, 6) == "\\x1b\\…"
    assert plain(" " * 900 + "x") == "x"
    assert plain_lines("a\x1b\n\tb\r") == "a\\x1b\n    b\\r"
    assert visible("a\tb\nc\rd") == "a\tb\nc\\rd"


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(), max_size=40))
def test_no_text_has_commands_or_markup(text: str) -> None:
    assert commands(plain(text)) == set()
    assert commands(plain_lines(text)) == set()
    for page in pages(f"- {markdown(text)} x"):
        assert page.tags in (["ul", "li"], ["ul", "li", "p"])
        assert words(page.text) == words(f"{plain(text)} x")


@hostile
def test_an_errors_text_has_no_commands(text: str) -> None:
    assert commands(f"{DataError(text)}").isdisjoint(commands(text) - {"\t"})


# --- Markdown ----------------------------------------------------------------------------------------------


@hostile
def test_markdown_shows_only_the_text(text: str) -> None:
    source = markdown(text)
    for page in pages(source):
        assert page.tags == ["p"]
        assert page.text.strip() == plain(text).strip()
    # Prefect's and MLflow's pages also turn bare addresses into links, :names: into pictures and $…$ into formulas.
    assert not re.search(r"https?://|ftp://|www\.|\w@\w|:\w+:|\$", source)


@hostile
def test_a_text_stays_in_its_table_cell_and_its_emphasis(text: str) -> None:
    page = Html(COMMONMARK.render(f"| a | b |\n| --- | --- |\n| **{markdown(text)}** | {markdown(text)} |"))
    assert page.tags == ["table", "thead", "tr", "th", "th", "tbody", "tr", "td", "strong", "td"]


def test_an_address_cannot_leave_its_link() -> None:
    for page in pages(f"[MLflow]({link_target('http://x/#/a b)![x](http://evil')}) end"):
        assert page.tags == ["p", "a"]
        assert page.text.strip() == "MLflow end"


@hostile
def test_texts_add_no_markup_to_the_report_on_prefects_page(text: str) -> None:
    def source(words: str) -> str:
        bad = between().model_copy(update={"failed": (FailedCell(cell=words, reason=words),), "missing": (words,)})
        return report_markdown(bad, notes=[words], page="http://127.0.0.1:5/#/x")

    for page, harmless in zip(pages(source(text)), pages(source("fine")), strict=True):
        assert page.tags == harmless.tags
        assert plain(text).strip() in page.text
    assert commands(source(text)) == set()


@hostile
def test_texts_add_no_markup_to_the_card_of_a_model(text: str) -> None:
    def source(words: str) -> str:
        card = ModelCard(
            detector=YoloV3TinySpec(), classes=(words,), data={"kind": "coco", words: words}, per_class={words: 0.5},
            metrics={"loss": 1.0}, federation="mine", notes=(words,),
        )  # fmt: skip
        return card_text(card, uri="models:/mine@best")

    for page, harmless in zip(pages(source(text)), pages(source("fine")), strict=True):
        assert page.tags == harmless.tags
    assert commands(source(text)) == set()


# --- HTML, LaTeX, CSV --------------------------------------------------------------------------------------


def test_texts_add_no_markup_to_the_html_report() -> None:
    def source(texts: list[str]) -> str:
        classes = dict.fromkeys(texts, 0.25)
        clients = {text: {"loss": 1.0} for text in texts}
        run = cell("a", "federated", 1, [0.1, 0.2], per_class=classes, per_client=clients)
        other = run.model_copy(update={"federation": "other", "seed": 2, "mlflow_url": "javascript:alert(1)"})
        failed = tuple(FailedCell(cell=text, reason=text) for text in texts)
        return report_html(result(run, other, failed=failed, missing=tuple(texts)), notes=texts)

    shown = source(list(HOSTILE.values()))
    page, harmless = Html(shown), Html(source([f"text {number}" for number in range(len(HOSTILE))]))
    assert page.tags == harmless.tags
    assert [name for name, _ in page.attributes] == [name for name, _ in harmless.attributes]
    assert "a" not in page.tags  # a javascript: address is no link
    assert commands(shown) <= {"\t"}
    for text in HOSTILE.values():
        assert words(visible(text)) in words(page.text)


@hostile
def test_latex_gets_only_letters(text: str) -> None:
    shown = escaped(text)
    assert commands(shown) == set()
    assert "\n" not in shown
    bare = re.sub(r"\\(?:textbackslash|textasciitilde|textasciicircum)\{\}|\\[{}_%&#$]", "", shown)
    assert not re.search(r"[\\{}_%&#$~^]", bare)


def test_no_text_of_the_latex_tables_ends_its_comment() -> None:
    bad = between().model_copy(update={"code_version": "1\n\\input{x}"})
    assert latex_tables(bad).splitlines()[0] == "% street street-1, code 1 \\input{x}; \\usepackage{booktabs}"


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_of_the_csv_is_a_formula(text: str) -> None:
    run = cell("a", "local-only", 1, [0.5], device="1").model_copy(update={"device": text})
    rows = list(csv.DictReader(io.StringIO(rounds_csv(result(run)))))
    assert rows[0]["device"] == f"'{text.strip()}"
    assert float(rows[0]["map50_voc10"]) == 0.5
    assert spreadsheet_cell("street-5") == "street-5"


# --- plots and drawings ------------------------------------------------------------------------------------


def test_plots_and_drawings_of_any_text_can_be_made() -> None:
    texts = list(HOSTILE.values())
    boxes = np.tile(np.array([2.0, 2, 30, 30], np.float32), (len(texts), 1))
    found = ImageDetections(boxes, np.full(len(texts), 0.9, np.float32), np.arange(len(texts)))
    image = Image.new("RGB", (64, 48))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the font has no Chinese letters
        warnings.filterwarnings("error", message="constrained_layout not applied")
        figure = class_by_device_plot({"1": dict.fromkeys(texts, 3)})
        figure.savefig(io.BytesIO(), format="png")
        suite = result(cell("a", "federated", 1, [0.1, 0.2], per_class=dict.fromkeys(texts, 0.25)))
        bars = classes_plot(summarise(suite).experiments[0])
        bars.savefig(io.BytesIO(), format="svg")
    labels = {plot_label(text) for text in texts}
    assert {label.get_text().rsplit("  ", 1)[0] for label in figure.axes[0].get_yticklabels()} == labels
    assert {label.get_text() for label in bars.axes[0].get_yticklabels()} == labels
    assert draw_detections(image, found, texts).size == image.size
    detection_sheet([(image, (np.zeros((0, 4)), np.zeros(0, np.int64)), found)], texts)
