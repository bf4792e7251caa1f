"""A suite's result as one HTML page for phones, desktops and paper, without scripts and without external resources."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tasks.plain_text import visible
from tasks.report import text
from tasks.report.cost_tables import costs_table, targets_table
from tasks.report.detections import CellAnalysis, errors_table
from tasks.report.drawn import DrawnOnce, image_bytes
from tasks.report.fields import common_fields, differing_fields
from tasks.report.main_tables import before_table, main_table, measures_table, runs_table
from tasks.report.method_tables import images_note, methods_table
from tasks.report.part_tables import classes_table, clients_table, devices_table, own_models_table
from tasks.report.tables import ORDER
from tasks.spec.suite import Role
from tasks.spec.suite_records import SuiteResult
from tasks.suite.methods import Compared, compare_methods
from tasks.suite.published import curves_beside, street_splits, what_differs
from tasks.suite.sharing import sharing_of
from tasks.suite.summary import Between, Summary, held_out_notes, summarise

_HERE = Path(__file__).parent
# Descriptions of the plots of detections.
_DETECTIONS = {
    "precision-recall": "Precision over recall by class",
    "confusion": "Confusion matrix",
    "errors": "Bars of what each type of errors costs; the table above has the figures",
}


def report_html(
    result: SuiteResult, *, before: SuiteResult | None = None, notes: Sequence[str] = (),
    analyses: Sequence[CellAnalysis] = (),
    compared: Sequence[Compared] | None = None,
    drawn: DrawnOnce | None = None,
) -> str:  # fmt: skip
    """Return the whole page.

    before: an earlier result (the accepted one) to compare figures with. notes: what a reader must know before
    comparing; it stands at the top. analyses: of the detections of one run of each experiment. compared: the methods,
    as in :func:`tasks.report.method_tables.methods_table`. drawn: plots that files beside the page have too.
    """
    import jinja2  # here, so that the core loads without it

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_printable,
    )  # fmt: skip
    css = (_HERE / "report.css").read_text(encoding="utf-8")
    compared = compare_methods(result) if compared is None else compared
    view = _view(result, before, notes, analyses, compared, drawn or DrawnOnce())
    return environment.get_template("report.html.j2").render(css=css, **view)


def _printable(value: object) -> object:
    """Return the value of an expression in the template with control characters escaped. Autoescape does the rest."""
    return visible(value) if type(value) is str else value  # a value of the subclass Markup is HTML already


def _view(
    result: SuiteResult, before: SuiteResult | None, notes: Sequence[str], analyses: Sequence[CellAnalysis],
    compared: Sequence[Compared], drawn: DrawnOnce,
) -> dict[str, Any]:  # fmt: skip
    """Return the template's variables."""
    summary = summarise(result)
    roles = {row.role for row in summary.rows}
    return {
        "result": result,
        "summary": summary,
        "notes": [*notes, *held_out_notes(summary)],
        "seeds": {between.experiment: _seeds(between) for between in summary.experiments},
        "main": main_table(summary),
        "roles": roles,
        "references": bool(roles - {"federated"}),
        "strips": [_strip(between, summary.metric) for between in summary.experiments],
        "methods": methods_table(result, compared),
        "images_note": images_note(compared),
        "measures": measures_table(summary),
        "targets": targets_table(result, summary),
        "costs": costs_table(result, summary),
        "wall_time": sharing_of(result).note if result.cells else "",
        "over_time": not sharing_of(result).shared,
        "published": _published(result, drawn),
        "before": before_table(result, before) if before is not None else None,
        "runs": runs_table(result),
        "common": common_fields(list(result.specs.values())),
        "differing": differing_fields(result.specs),
        "devices": [devices_table(between, summary) for between in summary.experiments if between.devices],
        "own": own_models_table(result, summary),
        "clients": [clients_table(row, summary.metric) for row in summary.rows if row.per_client],
        "plots": _plots(result, summary),
        "federations": _federations(result, summary, drawn),
        "classes": [
            {"table": classes_table(between), "plot": _classes_plot(between, drawn)}
            for between in summary.experiments
            if any(row.per_class for row in between.rows.values())
        ],
        "errors": errors_table(analyses) if analyses else None,
        "detections": _detections(analyses),
        "plural": text.plural,
    }


def _seeds(between: Between) -> str:
    seeds = dict.fromkeys(seed for row in between.rows.values() for seed in row.seeds)
    return ", ".join(map(str, seeds))


def _strip(between: Between, metric: str) -> dict[str, Any]:
    """Return the places of the roles' means on a scale from 0 to 1, in hundredths of its width, and in words."""
    places = {
        role: 100 * spread.mean
        for role in ORDER
        if role in between.rows and (spread := between.rows[role].figures[metric]) is not None
    }
    words = ", ".join(f"{text.ROLE_NAMES[role]} {place / 100:.3f}" for role, place in places.items())
    return {"places": {role: round(place, 2) for role, place in places.items()}, "words": words or "no figure"}


def _plots(result: SuiteResult, summary: Summary) -> list[dict[str, Any]]:
    """Return every experiment's panels: by round, by bytes, by time."""
    from tasks.figures.panels import bys_of  # here: matplotlib takes a second
    from tasks.figures.suite import experiment_plot

    return [
        {
            "experiment": between.experiment,
            "panels": [
                {
                    "src": _svg(image_bytes(experiment_plot(result, between.experiment, by), "svg")),
                    "alt": _alt(between, summary, by),
                }
                for by in bys_of(result)
            ],
        }
        for between in summary.experiments
    ]


def _federations(result: SuiteResult, summary: Summary, drawn: DrawnOnce) -> list[dict[str, str]]:
    """Return panels of all experiments, by round, bytes and time, or none for a single experiment."""
    from tasks.figures.panels import bys_of
    from tasks.figures.suite import federations_plot

    if len(summary.experiments) < 2:
        return []
    names = ", ".join(between.experiment for between in summary.experiments)
    return [
        {
            "src": _svg(drawn.image(f"federations-by-{by}", partial(federations_plot, result, by), "svg")),
            "alt": f"{summary.metric} by {by} of {names}, a line each",
        }
        for by in bys_of(result)
    ]


def _published(result: SuiteResult, drawn: DrawnOnce) -> dict[str, Any] | None:
    """Return the plots beside the published curves, and what differs; None without runs on Federated Street."""
    from tasks.figures.published import published_plot

    splits = street_splits(result)
    if not splits:
        return None
    specs = [spec for name, spec in result.specs.items() if street_splits(result, name)]
    plots = [
        {
            "src": _svg(drawn.image(f"published-{split}", partial(published_plot, result, split), "svg")),
            "alt": f"map50_voc10 by round on a logarithmic axis to 1,000, {split} devices; published curves end at "
            + ", ".join(f"{curve.values[-1]:.3f} ({curve.label})" for curve in curves_beside(split)),
        }
        for split in splits
    ]
    return {"plots": plots, "note": what_differs(specs)}


def _classes_plot(between: Between, drawn: DrawnOnce) -> dict[str, str]:
    from tasks.figures.suite import classes_plot

    alt = f"Bars of the AP50 of every class of {between.experiment}; the table beside it has the figures"
    image = drawn.image(f"by-class-{between.experiment}", partial(classes_plot, between), "svg")
    return {"src": _svg(image), "alt": alt}


def _detections(analyses: Sequence[CellAnalysis]) -> list[dict[str, Any]]:
    """Return the plots of each analysed run's detections."""
    return [
        {
            "title": item.title,
            "panels": [
                {"src": _address("image/png", item.png(name)), "alt": f"{description} of {item.title}"}
                for name, description in _DETECTIONS.items()
            ],
        }
        for item in analyses
    ]


def _alt(between: Between, summary: Summary, by: str) -> str:
    """Describe the panel for readers who cannot see it."""
    ends = []
    roles: tuple[Role, ...] = ORDER
    for role in roles:
        row = between.rows.get(role)
        if row is not None:
            ends.append(f"{text.ROLE_NAMES[role]} ends at {text.figure(row.figures[summary.metric])}")
    return f"{summary.metric} by {by} of {between.experiment}: {'; '.join(ends)}"


def _svg(image: bytes) -> str:
    """Return the address of an SVG that the page holds, so that its ids do not clash with those of other figures."""
    return _address("image/svg+xml", image)


def _address(kind: str, data: bytes) -> str:
    """Return the address of an image that the page itself holds. kind: its media type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
