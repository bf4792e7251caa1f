"""The report has every figure of the summary, loads nothing and escapes names. CSV and LaTeX have the same figures."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Sequence
from html.parser import HTMLParser

import pytest
from PIL import Image

from tasks.report import text
from tasks.report.csv import HEAD, rounds_csv
from tasks.report.files import report_parts
from tasks.report.html import report_html
from tasks.report.latex import escaped, latex_tables
from tasks.spec.federation import FederationSpec
from tasks.spec.records import ClientSpread, PersonalMetrics
from tasks.spec.suite_records import FailedCell, SuiteResult
from tasks.spec.training import TrainingSpec
from tasks.suite.summary import Spread, summarise
from tests.tasks.suite.suite_results import ENVIRONMENT, between, cell, result

OWN_MODELS = PersonalMetrics(
    figures={"map50_voc10": ClientSpread(mean=0.625, worst=0.375, worst_client="2", deviation=0.25, clients=2)},
    clients=2,
)
VOID = {"meta", "img", "br", "path", "circle"}
# Attributes whose address a browser loads.
LOADED = {"src", "srcset", "data", "poster", "background", "action"}


class Page(HTMLParser):
    """A parsed page: tags, words, and tables as rows of texts. It asserts that tags are closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.words = ""
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "table":
            self.tables[self._caption.strip()] = [[" ".join(cell.split()) for cell in row] for row in self._rows]

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words += data
        if "caption" in self.open:
            self._caption += data
        elif {"td", "th"} & set(self.open):
            self._rows[-1][-1] += data

    def table(self, start: str) -> list[list[str]]:
        return next(rows for caption, rows in self.tables.items() if caption.startswith(start))


@pytest.fixture(scope="module")
def source() -> str:
    return report_html(between(own_tests=True))


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def test_the_main_table_has_the_federation_between_its_references(page: Page) -> None:
    assert page.table("map50_voc10 at the last round") == [
        [
            "experiment", "local only", "federated", "centralised", "gap to centralised", "gain over local only",
            "0 to 1",
        ],
        [
            "apart", "0.305 ± 0.007 n = 2, 2 devices", "0.610 ± 0.010 n = 3", "0.820 ± 0.020 n = 3",
            "−0.210 ± 0.010 n = 3", "+0.300 ± 0.000 n = 2", "",
        ],
    ]  # fmt: skip


def test_the_report_has_every_figure_of_the_summary(page: Page) -> None:
    summary = summarise(between(own_tests=True))
    for row in (*summary.rows, *summary.experiments[0].devices):
        shown = [
            row.figures[name] for name in ("map50_voc10", "map50_voc07", "map50_coco", "map_coco", "recall", "loss")
        ]
        shown += [
            row.best,
            *row.per_class.values(),
            *(one for figures in row.per_client.values() for one in figures.values()),
        ]
        for spread in shown:
            assert text.figure(spread) in page.words
    assert page.table("Costs of one run")[1:] == [
        ["apart", "local only", "2", "2", "2.0 ± 0.0 min", "–", "–", "0.5 MB"],
        ["", "federated", "2", "2", "2.0 ± 0.0 min", "90.0 ± 0.0 s", "2.0 MB", "0.5 MB"],
        ["", "centralised", "2", "2", "2.0 ± 0.0 min", "–", "–", "0.5 MB"],
    ]
    # Areas up to 2 MB: with corners at 0, 0.5 and 0.60, 0.61 and 0.62.
    assert page.table("Up to the target; the target is map50_voc10 0.5; area up to 2.0 MB")[1:] == [
        ["apart", "local only", "0 of 4", "4 runs not in 2 rounds", "–", "–", "–", "–"],
        ["", "federated", "3 of 3", "1", "4", "1.0 MB", "60.0 ± 0.0 s", "0.403 ± 0.003"],
        ["", "centralised", "3 of 3", "1", "4", "–", "60.0 ± 0.0 s", "–"],
    ]
    assert page.table("apart: AP50")[1] == ["chair", "0.305 ± 0.007", "0.610 ± 0.010", "0.820 ± 0.020"]
    assert [row[:2] for row in page.table("apart: each device alone")[1:]] == [["1", "2"], ["2", "2"]]
    assert page.table("apart: the federated model on each client’s own")[1][:2] == ["1", "0.321 ± 0.000"]
    assert len(page.table("Every run")) == 1 + 10
    for word in ("1.2.3+abc", ENVIRONMENT.cpu, ENVIRONMENT.torch, "sample standard deviation", "2026-01-02 03:04 UTC"):
        assert word.lower() in page.words.lower()


def test_the_report_loads_nothing_and_has_no_script(source: str, page: Page) -> None:
    assert "://" not in source
    assert "@import" not in source
    assert "url(" not in source
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object", "embed", "form")]
    for _, attributes in page.tags:
        for name in LOADED & attributes.keys():
            kind, data = str(attributes[name]).split(",", 1)
            assert kind == "data:image/svg+xml;base64"
            assert base64.b64decode(data).startswith(b"<?xml")


def test_the_report_suits_screen_readers_and_phones(page: Page) -> None:
    tags = page.tags
    assert ("html", {"lang": "en"}) in tags
    assert any(attributes.get("name") == "viewport" for tag, attributes in tags if tag == "meta")
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in tags if tag == "th")
    assert sum(tag == "caption" for tag, _ in tags) == sum(tag == "table" for tag, _ in tags)
    boxes = [attributes for tag, attributes in tags if "scroll" in (attributes.get("class") or "")]
    assert len(boxes) == sum(tag == "table" for tag, _ in tags)
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in boxes)
    alt = next(str(attributes["alt"]) for tag, attributes in tags if tag == "img")
    assert alt == (
        "map50_voc10 by round of apart: local only ends at 0.305 ± 0.007; federated ends at 0.610 ± 0.010; "
        "centralised ends at 0.820 ± 0.020"
    )


def test_references_that_no_experiment_has_are_not_mentioned_beside_the_figures() -> None:
    alone = result(cell("a", "federated", 1, [0.0, 0.25]), cell("b", "federated", 1, [0.0, 0.5]))
    page = Page(report_html(alone))
    assert page.table("map50_voc10 at the last round") == [
        ["experiment", "federated", "0 to 1"], ["a", "0.250 n = 1", ""], ["b", "0.500 n = 1", ""],
    ]  # fmt: skip
    figures = page.words.split("All measures")[0]
    assert "references" not in figures
    assert "centralised" not in figures
    assert "Gap and gain" not in latex_tables(alone)
    one = Page(report_html(result(*alone.cells, cell("b", "centralised", 1, [0.0, 0.6]))))
    assert one.table("map50_voc10 at the last round")[1:] == [
        ["a", "0.250 n = 1", "–", "–", ""], ["b", "0.500 n = 1", "0.600 n = 1", "−0.100 n = 1", ""],
    ]  # fmt: skip


def test_failures_and_notes_come_first_and_are_escaped() -> None:
    bad = between().model_copy(
        update={"failed": (FailedCell(cell="apart.s4", reason="<b>&lost"),), "missing": ("apart.s5", "apart.s6")}
    )
    source = report_html(bad, notes=["<script>alert(1)</script>"])
    assert "<script" not in source
    assert "<b>&lost" not in source
    words = " ".join(Page(source).words.split())
    start, rest = words.split("Federated between its references", 1)
    assert "apart.s4 failed and is in no figure: <b>&lost" in start
    assert "<script>alert(1)</script>" in start
    assert "in no figure: apart.s5, apart.s6" in start
    assert "1 failed" in start
    assert "2 not ended" in start
    assert "apart.s4" not in rest


def test_classes_are_escaped() -> None:
    source = report_html(result(cell("a", "local-only", 1, [0.1], device="x", per_class={"<i>&": 0.25})))
    assert "<i>&" not in source
    assert Page(source).table("a: AP50")[1] == ["<i>&", "0.250"]


def test_one_seed_has_no_spread_and_a_run_links_to_its_mlflow_page() -> None:
    federated = cell("a", "federated", 7, [0.0, 0.25], per_class={}, mlflow_url="http://127.0.0.1:5/#/x")
    page = Page(report_html(result(federated, cell("a", "centralised", 7, [0.0, 0.5], per_class={}))))
    links = [(tag, attributes["href"]) for tag, attributes in page.tags if "href" in attributes]
    assert links == [("a", "http://127.0.0.1:5/#/x")]
    row = page.table("map50_voc10 at the last round")[1]
    assert row == ["a", "0.250 n = 1", "0.500 n = 1", "−0.250 n = 1", ""]
    assert "seeds of a" in page.words
    assert "Before comparing" not in page.words


def test_a_table_shows_where_experiments_differ() -> None:
    specs = {
        "e1": FederationSpec(max_rounds=4),
        "e5": FederationSpec(max_rounds=4, training=TrainingSpec(local_epochs=5)),
    }
    page = Page(report_html(result(*(cell(name, "federated", 1, [0.1], per_class={}) for name in specs), specs=specs)))
    assert page.table("Where the experiments differ") == [
        ["field", "e1", "e5"], ["training.local_epochs", "1", "5"],
    ]  # fmt: skip
    common = " ".join(page.words.split("What was run")[1].split())
    assert "max_rounds 4" in common
    assert "data.kind synthetic-street" in common
    assert "local_epochs: 5" in common  # the whole specification


def test_the_report_compares_with_an_earlier_result() -> None:
    before = result(cell("apart", "federated", 1, [0.5]), cell("gone", "federated", 1, [0.4]), suite_run="then")
    rows = Page(report_html(between(), before=before)).table("map50_voc10 at the last round, against then")
    assert rows == [
        ["experiment", "role", "before", "n", "now", "n", "difference of means"],
        ["apart", "local only", "–", "–", "0.305 ± 0.007", "2", "–"],
        ["", "federated", "0.500", "1", "0.610 ± 0.010", "3", "+0.110"],
        ["", "centralised", "–", "–", "0.820 ± 0.020", "3", "–"],
        ["gone", "federated", "0.400", "1", "–", "–", "–"],
    ]


# --- the other forms ---------------------------------------------------------------------------------------


def test_the_csv_has_every_round_of_every_run() -> None:
    rows = list(csv.DictReader(io.StringIO(rounds_csv(between()))))
    assert len(rows) == 10 * 3
    assert tuple(rows[0]) == HEAD
    last = rows[2]
    assert (last["experiment"], last["role"], last["device"], last["seed"], last["round"]) == (
        "apart", "federated", "", "1", "2",
    )  # fmt: skip
    assert float(last["map50_voc10"]) == 0.6
    assert float(last["map_coco"]) == 0.3
    assert (last["bytes_exchanged"], last["seconds"], last["passes"]) == ("2000000", "120.0", "2.0")
    assert [row["last_round"] for row in rows[:3]] == ["0", "0", "1"]
    assert [row["bytes_moved"] for row in rows[:3]] == ["", "", "500000"]
    assert rows[0]["train_loss"] == ""
    assert {row["device"] for row in rows if row["role"] == "local-only"} == {"1", "2"}


def test_the_latex_tables_use_booktabs_and_have_mean_and_deviation() -> None:
    tables = latex_tables(between())
    assert tables.count(r"\begin{table}") == tables.count(r"\end{table}") == 2
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert tables.count(rule) == 2
    for columns, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", tables, re.DOTALL):
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {line.count("&") for line in lines} == {len(columns) - 1}
    assert (
        r"    apart & $0.305 \pm 0.007$ (2) & $0.610 \pm 0.010$ (3) & $0.820 \pm 0.020$ (3) & $-0.210 \pm 0.010$ (3) "
        r"& $+0.300 \pm 0.000$ (2) \\" in tables.splitlines()
    )
    assert r" & federated & 3 & $0.610 \pm 0.010$ &" in tables
    assert "their number in brackets" in tables
    assert tables.isascii()


def test_the_caption_gives_the_number_of_seeds_if_all_have_the_same() -> None:
    same = latex_tables(result(*(cell("a", "federated", seed, [0.1]) for seed in (1, 2))))
    assert "sample standard deviation over 2 seeds." in same
    assert r"a & $0.100 \pm 0.000$ \\" in same
    assert "over one seed" not in same
    assert "at the last round, one seed." in latex_tables(result(cell("a", "federated", 1, [0.1])))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a_b%c", r"a\_b\%c"),
        ("x&y#$", r"x\&y\#\$"),
        ("{~^}", r"\{\textasciitilde{}\textasciicircum{}\}"),
        ("a\\b", r"a\textbackslash{}b"),
    ],
)
def test_names_are_escaped_in_latex(name: str, shown: str) -> None:
    assert escaped(name) == shown


def files_of(result: SuiteResult, *, notes: Sequence[str] = ()) -> dict[str, bytes]:
    return {name: make() for name, make in report_parts(result, notes=notes).items()}


def test_a_suite_without_any_result_still_has_a_report() -> None:
    files = files_of(result(failed=(FailedCell(cell="a.s1", reason="no store"),)))
    assert list(files) == ["report.html", "rounds.csv", "table.tex"]
    page = Page(files["report.html"].decode())
    assert "a.s1 failed and is in no figure: no store" in " ".join(page.words.split())
    assert "0 experiments" in page.words


def test_the_page_has_the_images_of_the_files() -> None:
    """Each SVG gets random ids, so the bytes are equal only if the plot was drawn once."""
    files = files_of(between())
    image = base64.b64encode(files["by-class-apart.svg"]).decode()
    assert f"data:image/svg+xml;base64,{image}" in files["report.html"].decode()


def test_all_forms_are_files() -> None:
    files = files_of(result(cell("a", "federated", 1, [0.1])), notes=["mind this"])
    names = [
        f"{plot}.{ending}" for plot in ("by-round", "by-bytes", "by-time", "by-class-a") for ending in ("png", "svg")
    ]
    assert list(files) == ["report.html", "rounds.csv", "table.tex", *names]
    assert "mind this" in files["report.html"].decode()
    with Image.open(io.BytesIO(files["by-round.png"])) as picture:
        assert picture.width > 500
    assert files["by-round.svg"].startswith(b"<?xml")


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ((0.5,), ("0.500", "+0.500", "0.50", "0.5 s", "0.0 MB")),
        ((0.0004, 0.0004), ("0.000 ± 0.000", "0.000 ± 0.000", "0.00", "0.0 ± 0.0 s", "0.0 MB")),
        ((3.0, 4.0), ("3.500 ± 0.707", "+3.500 ± 0.707", "3.5 ± 0.7", "3.5 ± 0.7 s", "0.0 ± 0.0 MB")),
        ((3600.0,) * 2, ("3600.000 ± 0.000", "+3600.000 ± 0.000", "3600", "60.0 ± 0.0 min", "0.0 MB")),
        ((7.2e9,), ("7200000000.000", "+7200000000.000", "7200000000", "2000000.0 h", "7.20 GB")),
    ],
)
def test_figures_and_costs_are_written_in_units_that_read_well(
    values: tuple[float, ...], shown: tuple[str, ...]
) -> None:
    spread = Spread(values)
    written = (text.figure, text.signed, text.count, text.duration, text.size)
    assert tuple(write(spread) for write in written) == shown
    assert {write(None) for write in written} == {"–"}


def test_the_report_has_the_mean_the_worst_and_the_spread_of_own_models() -> None:
    cells = [cell("mine", "federated", seed, [0.1, 0.5], personal=OWN_MODELS) for seed in (1, 2)]
    page = Page(report_html(result(*cells, cell("other", "federated", 1, [0.1, 0.5]))))
    (rows,) = [rows for caption, rows in page.tables.items() if caption.startswith("Clients’ own models")]
    assert [row[0] for row in rows[1:]] == ["mine"]
    assert [text[:5] for text in rows[1][1:]] == ["2", "0.625", "0.375", "0.250"]
    assert not any("own models" in caption for caption in Page(report_html(between())).tables)
