"""``fedbench show``, ``list`` and ``compare``: print what the store has, as tables or JSON. They run nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.cli.json_output import PrintJson, print_json
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
    print_note,
    print_warnings,
    shell_quoted,
)
from infra.errors import InfraError
from infra.settings import Settings
from infra.views import Views
from tasks.plain_text import REASON_LIMIT, plain
from tasks.spec.federation import MapName


def show(
    name: RunName,
    classes: Annotated[
        bool, typer.Option("--classes", "-c", help="Also print the best round's figures by class.")
    ] = False,
    as_json: PrintJson = False,
    home: Home = None,
) -> None:
    """Print a federation's rounds from the store, with all four mAPs if the terminal has room for them."""
    from rich.text import Text

    from flows.stored.runs import opened_store, read_run, read_tuned
    from flows.views.documents import run_document, seconds
    from flows.views.label_spaces import label_space_lines
    from flows.views.progress import clock
    from flows.views.tables import best_line, bytes_note, class_table, describe, own_lines, own_table, round_table
    from infra.store.holding import Subject
    from tasks.held_out import without_figure

    with plain_errors():
        settings = machine_settings(home)
        with opened_store(settings) as objects:
            stored = read_run(objects, settings, name)
            tuned = read_tuned(objects, settings, stored)
            elsewhere = None
            if stored.status == "stopped" and not as_json:  # on this machine; another one may run it
                lease = Subject.federation(settings, name).lease(objects, settings, "fedbench show", locked=False)
                elsewhere = lease.holder()
        if as_json:
            print_json(run_document(name, stored.status, stored.spec, stored.records, tuned))
            return
        spec, took = stored.spec, seconds(stored.records)
        time = "" if took is None else f" · took {clock(took)}"
        what = f" · {describe(spec)} · seed {spec.seed} · spec {spec.digest[:12]} · {stored.status}{time}"
        out.print(Text.assemble((name, "bold"), what))
        for line in label_space_lines(stored.spec):
            out.print(line, soft_wrap=True, highlight=False)
        if stored.records:
            out.print(round_table(stored.records, wide=out.width >= WIDE))
            print_note(bytes_note(stored.records))
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
        if not stored.records:
            out.print("no round is committed yet")
        if stored.status == "stopped":
            held = f"held by {elsewhere}; if that is gone, " if elsewhere else ""
            print_command(out, f"{held}go on: ", f"fedbench resume {name}{home_option(settings)}")


def list_runs(
    suite: Annotated[
        str | None, typer.Option(metavar="SUITE_RUN", help="List the cells of this suite run, which are folded else.")
    ] = None,
    state: Annotated[
        Literal["running", "finished", "stopped", "failed", "waiting", "damaged"] | None,
        typer.Option(help="List only what is in this state. A cell that has not begun is waiting."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="Only what has changed since 2026-11-30, or since 7d (30m, 12h, 2w) ago."),
    ] = None,
    as_json: PrintJson = False,
    home: Home = None,
) -> None:
    """List federations and suite runs in the store: state, rounds, best figure, seed, last commit, wall time.

    A suite run is one line. `--suite SUITE_RUN` lists its cells.
    """
    from flows.commands.listing import read_listing, since_of
    from flows.commands.listing_table import listing_table
    from flows.stored.runs import opened_store

    with plain_errors():
        after = None if since is None else since_of(since)
        settings = machine_settings(home)
        with opened_store(settings) as objects:
            whole = read_listing(objects, settings, suite)
        listing = whole.chosen(state, after)
        if as_json:
            print_json(listing.document())
            return
        if not (whole.suites or whole.federations):
            out.print("no federation yet; start with: fedbench run")
            return
        if not (listing.suites or listing.federations):
            out.print("nothing in the store is in this state, or has changed since then")
            return
        out.print(listing_table(listing, wide=out.width >= WIDE))
        for line in listing.reasons():
            out.print(line, soft_wrap=True, highlight=False)


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
    as_json: PrintJson = False,
    home: Home = None,
) -> None:
    """Compare federations side by side: figures by measure and class, costs, and differing fields.

    Writes a report (HTML), a table (LaTeX), every round (CSV) and plots. In the report, runs that differ only in their
    seed count as one experiment, and are compared with its references.

    `fedbench compare street5-ed9332d5 street5-0a1b2c3d-centralised`
    """
    from flows.commands import compare as comparison
    from flows.commands.compare_table import BYTES_NOTE, comparison_table
    from flows.suite.image_intervals import stored_methods

    with plain_errors():
        settings = machine_settings(home)
        compared = comparison.read_compared(settings, names, metric)
        result = comparison.result_of(compared, metric, target)
        views, folder = Views(), folder or comparison.default_folder(settings, names)
        ranked = stored_methods(settings, result, views)
        paths = comparison.write_comparison(compared, result, folder, views, ranked)
    if as_json:
        from flows.commands.compare_document import comparison_document

        print_json(comparison_document(compared, result, paths, views))
        print_warnings(views)
        if views.failed:
            raise typer.Exit(EXIT_FAILED)
        return
    out.print(comparison_table(compared, metric))
    print_note(BYTES_NOTE)
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
