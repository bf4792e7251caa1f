"""The suite's tables for a paper: LaTeX with booktabs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from tasks.plain_text import plain
from tasks.report import text
from tasks.report.tables import MEASURES, ORDER, shown_columns
from tasks.spec.suite_records import SuiteResult
from tasks.suite.intervals import CONFIDENCE, LEAST_SEEDS, Interval
from tasks.suite.methods import Compared, compare_methods
from tasks.suite.summary import Between, Spread, Summary, held_out_notes, summarise

_ESCAPED = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip
_HEADS = {
    "map50_voc10": r"mAP$_{50}^{\mathrm{VOC10}}$", "map50_voc07": r"mAP$_{50}^{\mathrm{VOC07}}$",
    "map50_coco": r"mAP$_{50}^{\mathrm{COCO}}$", "map_coco": r"mAP$^{\mathrm{COCO}}$",
    "recall": "Recall", "loss": "Loss",
}  # fmt: skip
_MISSING = "--"


def latex_tables(result: SuiteResult, compared: Sequence[Compared] | None = None) -> str:
    """Return each federation's metric between its references, all measures by role, and methods beside FedAvg, if any.

    They need the package booktabs. Figures are the mean ± the sample standard deviation over seeds. The number of
    seeds is in the caption if all figures have the same, else in brackets after each figure.

    compared: as in :func:`tasks.report.method_tables.methods_table`.
    """
    summary = summarise(result)
    lines = [f"% {result.suite} {result.suite_run}, code {plain(result.code_version)}; \\usepackage{{booktabs}}"]
    tables = [_between_references(result, summary), _measures(result, summary), _methods(result, compared)]
    return "\n".join([*lines, *(line for table in tables if table for line in (*table, ""))])


def escaped(name: str) -> str:
    """Return ``name`` escaped for LaTeX."""
    return "".join(_ESCAPED.get(letter, letter) for letter in plain(name))


def _between_references(result: SuiteResult, summary: Summary) -> list[str]:
    metric, shown = summary.metric, shown_columns(summary)
    spreads = [_spreads(between, metric) for between in summary.experiments]
    n = _common_n(spread for row in spreads for spread in row)
    body = []
    for between, row in zip(summary.experiments, spreads, strict=True):
        cells = [_figure(spread, sign=place >= len(ORDER), n=n is None) for place, spread in enumerate(row)]
        body.append(_line([escaped(between.experiment), *itertools.compress(cells, shown)]))
    heads = ["Local only", "Federated", "Centralised", "Gap to centralised", "Gain over local only"]
    caption = f"{_HEADS[metric]} at the last round, {_over(n)}."
    if any(shown[len(ORDER) :]):
        caption += (
            " Gap and gain are differences of the same seed's runs after as many passes over the training images."
        )
    columns = ["Experiment", *itertools.compress(heads, shown)]
    return _table(caption, f"tab:{result.suite}", "l" + "r" * sum(shown), columns, body)


def _measures(result: SuiteResult, summary: Summary) -> list[str]:
    body = []
    for number, between in enumerate(summary.experiments):
        body += [r"    \addlinespace"] if number else []
        rows = [between.rows[role] for role in ORDER if role in between.rows]
        for index, row in enumerate(rows):
            who = [escaped(between.experiment) if index == 0 else "", text.ROLE_NAMES[row.role], str(len(row.seeds))]
            body.append(_line([*who, *(_figure(row.figures[name]) for name in MEASURES)]))
    heads = ["Experiment", "Role", "$n$", *(_HEADS[name] for name in MEASURES)]
    return _table(
        "All measures at the last round, mean $\\pm$ sample standard deviation over $n$ seeds."
        + "".join(f" {escaped(note)}." for note in held_out_notes(summary)),
        f"tab:{result.suite}-measures",
        "llrrrrrrr",
        heads,
        body,
    )


def _methods(result: SuiteResult, compared: Sequence[Compared] | None) -> list[str]:
    """Return the table of methods with their paired differences, best first; empty without methods."""
    compared = compare_methods(result) if compared is None else compared
    if not compared:
        return []
    n = _common_n(item.paired.difference for item in compared if item.paired is not None)
    images = any(item.over_images is not None for item in compared)
    body = []
    for item in compared:
        difference = item.paired.difference if item.paired is not None else None
        body.append(
            _line(
                [
                    escaped(item.experiment),
                    escaped(item.baseline or "") or _MISSING,
                    _figure(item.figure, n=n is None),
                    _figure(difference, sign=True, n=n is None),
                    _interval(item.interval),
                    _interval(item.over_seeds),
                    *([_interval(item.over_images)] if images else []),
                ]
            )
        )
    heads = [
        "Method", "Paired with", _HEADS[result.metric], "Difference", rf"{CONFIDENCE * 100:.0f}\,\% interval",
        "Bootstrap, seeds", *(["Bootstrap, seeds and images"] if images else []),
    ]  # fmt: skip
    caption = (
        f"{_HEADS[result.metric]} of federated methods at the last round, {_over(n)}. Differences are those of the "
        "same seed's runs after equal passes from FedAvg with the same local training; intervals are Student's t and "
        f"the bootstrap's, which needs {LEAST_SEEDS} seeds."
    )
    return _table(caption, f"tab:{result.suite}-methods", "llrrrr" + "r" * images, heads, body)


def _spreads(between: Between, metric: str) -> list[Spread | None]:
    """Return an experiment's spreads in the order of the columns."""
    figures = [between.rows[role].figures[metric] if role in between.rows else None for role in ORDER]
    pairs = [paired.difference if paired is not None else None for paired in (between.gap, between.gain)]
    return [*figures, *pairs]


def _table(caption: str, label: str, columns: str, heads: list[str], body: list[str]) -> list[str]:
    return [
        r"\begin{table}[t]",
        r"  \centering",
        f"  \\caption{{{caption}}}",
        f"  \\label{{{label}}}",
        f"  \\begin{{tabular}}{{{columns}}}",
        r"    \toprule",
        _line(heads),
        r"    \midrule",
        *body,
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]


def _line(cells: list[str]) -> str:
    return f"    {' & '.join(cells)} \\\\"


def _figure(spread: Spread | None, *, sign: bool = False, n: bool = False) -> str:
    """Return a figure in LaTeX, with ``n`` followed by the number of seeds."""
    if spread is None:
        return _MISSING
    shown = text.signed(spread) if sign else text.figure(spread)
    shown = shown.replace(text.MINUS, "-").replace("±", r"\pm")
    return f"${shown}$ ({spread.n})" if n else f"${shown}$"


def _interval(bounds: Interval | None) -> str:
    shown = _MISSING if bounds is None else f"${text.interval(bounds)}$"
    return shown.replace(text.MINUS, "-").replace(" to ", r"$ to $")


def _common_n(spreads: Iterable[Spread | None]) -> int | None:
    """Return the number of seeds of all spreads, or None if they differ."""
    found = {spread.n for spread in spreads if spread is not None}
    return found.pop() if len(found) == 1 else None


def _over(n: int | None) -> str:
    if n == 1:
        return "one seed"
    seeds = f"{n} seeds" if n is not None else "seeds, their number in brackets"
    return f"mean $\\pm$ sample standard deviation over {seeds}"
