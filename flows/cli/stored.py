"""``fedbench show``, ``list`` and ``compare``: print what the store has, without running anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.shared import (
    EXIT_FAILED,
    WIDE,
    Home,
    RunName,
    home_option,
    machine_settings,
    out,
    plain_errors,
    print_command,
    print_warnings,
    shell_quoted,
)
from infra.errors import InfraError
from infra.settings import Settings
from infra.views import Views
from tasks.plain_text import REASON_LIMIT, plain
from tasks.spec.federation import FederationSpec, MapName
from tasks.spec.strategies import FedAvgSpec


def show(
    name: RunName,
    classes: Annotated[
        bool, typer.Option("--classes", "-c", help="Also print the best round's figures by class.")
    ] = False,
    home: Home = None,
) -> None:
    """Print a federation's rounds from the store, with all four mAPs if the terminal has room for them."""
    from rich.text import Text

    from flows.stored.runs import opened_store, read_run, read_tuned
    from flows.views.tables import best_line, class_table, describe, own_lines, own_table, round_table
    from tasks.held_out import without_figure

    with plain_errors():
        settings = machine_settings(home)
        with opened_store(settings) as objects:
            stored = read_run(objects, settings, name)
            tuned = read_tuned(objects, settings, stored)
        what = f" · {describe(stored.spec)} · spec {stored.spec.digest[:12]} · {stored.status}"
        out.print(Text.assemble((name, "bold"), what))
        if stored.records:
            out.print(round_table(stored.records, wide=out.width >= WIDE))
            decision, environment = stored.records[-1].decision, stored.records[-1].environment
            if (best := best_line(decision)) is not None:
                out.print(f"best: {best}", highlight=False)
            if (own := own_table(stored.records)) is not None:
                out.print(own)
            for line in own_lines(stored.records, tuned):
                out.print(line, soft_wrap=True, highlight=False)
            if (note := without_figure(stored.spec, stored.records[-1].clients)) is not None:
                out.print(note, soft_wrap=True, highlight=False)
            if classes:
                out.print(class_table(stored.records[decision.best_round]))
            out.print(
                f"torch {environment.torch} · {environment.cpu} · {environment.threads} thread(s) a turn",
                highlight=False,
            )
        for record in stored.records:
            for failure in record.dropped:
                out.print(
                    f"round {record.round}: client {failure.client} dropped ({failure.kind}): "
                    f"{plain(failure.reason, REASON_LIMIT)}",
                    soft_wrap=True,
                    highlight=False,
                )


def list_runs(home: Home = None) -> None:
    """List the federations in the store: state, rounds and best figure, or why one cannot be read."""
    from rich.table import Table

    from flows.stored.runs import DamagedRun, opened_store, read_runs

    with plain_errors():
        settings = machine_settings(home)
        table = Table("federation", "state", "rounds", "best", "specification", box=None)
        table.columns[0].no_wrap = True  # so that names can be copied
        damaged: list[DamagedRun] = []
        with opened_store(settings) as objects:
            for stored in read_runs(objects, settings):
                if isinstance(stored, DamagedRun):
                    table.add_row(stored.name, "damaged", "–", "–", _described(stored.spec))
                    damaged.append(stored)
                    continue
                last = stored.records[-1].decision if stored.records else None
                table.add_row(
                    stored.name,
                    stored.status,
                    f"{max(len(stored.records) - 1, 0)}/{stored.spec.max_rounds}",
                    "–" if last is None or last.best is None else f"{last.best_name} {last.best:.3f}",
                    _described(stored.spec),
                )
        if not table.row_count:
            out.print("no federation yet; start with: fedbench run")
            return
        out.print(table)
        for run in damaged:
            reason = plain(run.reason, REASON_LIMIT)
            out.print(f"{run.name} is damaged: {reason}", soft_wrap=True, highlight=False)


def _described(spec: FederationSpec | None) -> str:
    if spec is None:
        return "–"
    method = "" if spec.strategy == FedAvgSpec() else f"{spec.strategy.label} · "
    return f"{spec.data.kind} · {spec.detector.kind} · {method}{spec.digest[:8]}"


def compare(
    names: Annotated[
        list[str], typer.Argument(metavar="RUN RUN...", help="Federations; the others are compared with the first.")
    ],
    metric: Annotated[
        MapName, typer.Option(help="Figure that is plotted, and that decides which round is the best.")
    ] = "map50_voc10",
    target: Annotated[
        float, typer.Option(min=0, max=1, help="The report names the first round whose metric reaches this value.")
    ] = 0.5,
    folder: Annotated[Path | None, typer.Option("--out", help="Folder of the report. [below home]")] = None,
    home: Home = None,
) -> None:
    """Compare federations side by side: figures by measure and class, costs, and differing fields.

    Writes a report (HTML), a table (LaTeX), every round (CSV) and plots. In the report, runs that differ only in their
    seed count as one experiment, and are compared with its references.

    `fedbench compare street5-ed9332d5 street5-0a1b2c3d-centralised`
    """
    from flows.commands import compare as comparison
    from flows.suite.image_intervals import stored_methods

    with plain_errors():
        settings = machine_settings(home)
        compared = comparison.read_compared(settings, names, metric)
        result = comparison.result_of(compared, metric, target)
        views, folder = Views(), folder or comparison.default_folder(settings, names)
        ranked = stored_methods(settings, result, views)
        paths = comparison.write_comparison(compared, result, folder, views, ranked)
    out.print(comparison.comparison_table(compared, metric))
    lines = [f"warning: {line}" for line in comparison.warnings(compared)]
    lines += [*comparison.gaps(compared, metric), *comparison.gains(result), *comparison.differences(compared)]
    if paths:
        lines.append(
            f"written: {shell_quoted(paths[0])}; beside it {', '.join(sorted(path.name for path in paths[1:]))}"
        )
    for line in lines:
        out.print(line, soft_wrap=True, highlight=False)
    _print_mlflow_page(settings, names, metric)
    print_warnings(views)
    if views.failed:
        raise typer.Exit(EXIT_FAILED)


def _print_mlflow_page(settings: Settings, names: list[str], metric: MapName) -> None:
    """Print the address of MLflow's comparison by round; without a server that stays, the command that serves it."""
    from flows.commands.tracked import comparison_page

    try:
        page = comparison_page(settings, names, metric)
    except InfraError as error:  # the comparison itself is made
        out.print(f"MLflow's page: {plain(str(error), REASON_LIMIT)}", soft_wrap=True, highlight=False)
        return
    if page is not None:
        out.print(f"MLflow: {page}", soft_wrap=True, highlight=False, markup=False)
    else:
        print_command(out, "MLflow: ", f"fedbench ui {' '.join(names)}{home_option(settings)}")
