"""``fedbench suite``: run a benchmark's suite, see where it stands, write its report again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.json_output import PrintJson, print_json
from flows.cli.shared import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    Home,
    err,
    home_option,
    log_to,
    machine_settings,
    out,
    outlive_readers,
    plain_errors,
    print_error,
    print_warnings,
    shell_quoted,
)
from flows.commands.arguments import choose_suite
from infra.errors import StoreCorrupt
from infra.settings import Settings
from infra.views import Views
from tasks.errors import FedbenchError
from tasks.plain_text import REASON_LIMIT, plain
from tasks.spec.suite import SuiteSpec, with_seeds
from tasks.spec.suite_presets import SUITES

if TYPE_CHECKING:
    from rich.table import Table

    from flows.suite.run import SuiteOutcome
    from tasks.spec.suite_records import SuiteResult

suite_app = typer.Typer(
    name="suite", help="Suites: experiments over seeds, with their references.", no_args_is_help=True
)

SuiteRunName = Annotated[str, typer.Argument(metavar="SUITE_RUN", help="`fedbench suite list` shows them.")]


@suite_app.command("run")
def run(
    what: Annotated[
        str, typer.Argument(metavar="SUITE", help=f"A YAML file, or one of: {', '.join(SUITES)}.")
    ] = "smoke",
    name: Annotated[str | None, typer.Option("--name", "-n", help="The suite run's name. [suite and digest]")] = None,
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", help="A seed, instead of the experiments' own; repeatable.")
    ] = None,
    slots: Annotated[int | None, typer.Option(help="Turns at a time, over all cells. [cores // threads]")] = None,
    compare: Annotated[
        bool, typer.Option("--compare/--no-compare", help="Fail if the result is worse than the accepted one.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would happen to each cell. Start and write nothing.")
    ] = False,
    home: Home = None,
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="Log to the terminal too.")] = 0,
) -> None:
    """Run a suite: every experiment, seed and reference. The same command continues a suite run that was killed.

    `fedbench suite run cpu` · `fedbench suite run my-suite.yaml --name 2026-11`
    """
    with plain_errors():
        suite = choose_suite(what)
        if seeds:
            suite = with_seeds(suite, seeds)
        if dry_run:
            _dry_run(machine_settings(home, slots, reads_only=True), name, suite)
            return
        settings = machine_settings(home, slots)
        outcome = _run(name, suite, settings, verbose, compare=compare)
        _print_figures(outcome.result)
        if outcome.already_finished:  # else the suite's flow has printed it
            out.print(f"report: {shell_quoted(outcome.folder / 'report.html')}", soft_wrap=True, highlight=False)


def _dry_run(settings: Settings, name: str | None, suite: SuiteSpec) -> None:
    from rich.table import Table

    from flows.commands.suite_dry_run import dry_run_suite

    logging.getLogger().addHandler(logging.NullHandler())  # warnings about the data are lines of the result
    found = dry_run_suite(settings, name, suite)
    for line in found.lines:
        out.print(plain(line), soft_wrap=True, highlight=False)
    if found.refusal is not None:
        raise found.refusal
    table = Table("cell", "would", box=None, pad_edge=False)
    for cell, would in found.cells.items():
        table.add_row(cell, would)
    out.print(table)


def _run(name: str | None, suite: SuiteSpec, settings: Settings, verbose: int, *, compare: bool) -> SuiteOutcome:
    log = log_to(settings.home / "suites" / f"{name or suite.name}.log", settings, verbose)
    outlive_readers()

    from flows.suite.run import run_suite

    def say(line: str) -> None:
        out.print(line, soft_wrap=True, highlight=False)

    again = f"the same command runs the remaining cells{home_option(settings) and f' (with{home_option(settings)})'}"
    try:
        return run_suite(name, suite, settings, say, compare=compare)
    except KeyboardInterrupt:
        err.print(f"\ninterrupted; {again}", soft_wrap=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except Exception as error:
        from flows.suite.flow import SuiteFailed

        if not isinstance(error, SuiteFailed):
            raise
        print_error("failed", str(error))
        err.print(f"log: {shell_quoted(log)} · {again}", soft_wrap=True, highlight=False)
        raise typer.Exit(EXIT_FAILED) from None


@suite_app.command("show")
def show(name: SuiteRunName, as_json: PrintJson = False, home: Home = None) -> None:
    """Print the figures of a suite run's finished cells, and which cells failed or are missing. Runs nothing."""
    from tasks.code_version import code_version

    with plain_errors():
        result = stored_result(machine_settings(home), name)
        if as_json:
            from flows.suite.document import suite_document

            print_json(suite_document(result))
            return
        _print_figures(result)
        from flows.suite.moved_cells import imported_notes

        for line in imported_notes(result):
            out.print(plain(line), soft_wrap=True, highlight=False)
        if result.code_version != code_version():
            out.print(
                f"run by code {result.code_version}; the installed code, {code_version()}, would run its cells again",
                soft_wrap=True,
                highlight=False,
            )
        for cell in result.failed:
            out.print(f"failed: {cell.cell}: {plain(cell.reason)}", soft_wrap=True, highlight=False)
        if result.missing:
            out.print(f"not run yet: {', '.join(result.missing)}", soft_wrap=True, highlight=False)


@suite_app.command("report")
def report(
    name: SuiteRunName,
    folder: Annotated[Path | None, typer.Option("--out", help="Folder of the report. [below home]")] = None,
    home: Home = None,
) -> None:
    """Write the report of a suite run's results so far: HTML, CSV, LaTeX and plots."""
    with plain_errors():
        settings = machine_settings(home)
        result = stored_result(settings, name)
        from flows.stored.runs import opened_store
        from flows.suite.detections import read_analyses
        from flows.suite.files import made_files, write_files
        from flows.suite.handles import suite_folder
        from flows.suite.image_intervals import compared_methods
        from flows.suite.moved_cells import imported_notes

        folder, views = folder or suite_folder(settings, name) / "report", Views()
        with opened_store(settings) as objects:
            analyses = read_analyses(objects, settings, result, views)
            compared = compared_methods(objects, settings, result, views)
        write_files(
            folder, made_files(views, result, notes=imported_notes(result), analyses=analyses, compared=compared)
        )
        out.print(f"report: {shell_quoted(folder / 'report.html')}", soft_wrap=True, highlight=False)
        print_warnings(views)
        if views.failed:
            raise typer.Exit(EXIT_FAILED)


@suite_app.command("list")
def list_suites(home: Home = None) -> None:
    """List the suite runs in the store."""
    from rich.table import Table

    from flows.stored.runs import opened_store
    from flows.suite.plan import read_plan
    from infra.store.suite_layout import suite_runs

    with plain_errors():
        settings = machine_settings(home)
        table = Table("suite run", "suite", "cells done", "failed", box=None)
        damaged: dict[str, str] = {}
        with opened_store(settings) as objects:
            prefix = settings.s3.prefix
            for name in suite_runs(prefix, objects.list(prefix)):
                try:
                    plan = read_plan(objects, prefix, name)
                    states = [record.state for cell in plan.to_run if (record := plan.record(cell)) is not None]
                except (FedbenchError, StoreCorrupt) as error:
                    table.add_row(name, "–", "damaged", "")
                    damaged[name] = plain(str(error), REASON_LIMIT)
                    continue
                done, failed = states.count("done"), states.count("failed")
                table.add_row(name, plan.suite.name, f"{done}/{len(plan.to_run)}", str(failed or ""))
        if not table.row_count:
            out.print("no suite run yet; start with: fedbench suite run")
            return
        out.print(table)
        for name, reason in damaged.items():
            out.print(f"{name} is damaged: {reason}", soft_wrap=True, highlight=False)


def stored_result(settings: Settings, name: str) -> SuiteResult:
    """Return the result so far of the suite run ``name``, from the store.

    Raises:
        SpecError: there is no suite run of this name, or none of its cells has ended.
    """
    from flows.stored.runs import opened_store
    from flows.suite.plan import read_plan
    from flows.suite.result import build_result
    from tasks.errors import SpecError

    with opened_store(settings) as objects:
        result = build_result(read_plan(objects, settings.s3.prefix, name), settings)
    if not result.cells and not result.failed:
        raise SpecError(f"{name}: expected a cell that has ended, found none yet")
    return result


def _print_figures(result: SuiteResult) -> None:
    """Print the table of figures, and each experiment's method if one of them is not plain FedAvg."""
    from tasks.report.method_tables import methods

    out.print(result_table(result))
    for line in methods(result.specs):
        out.print(line, soft_wrap=True, highlight=False)


def result_table(result: SuiteResult) -> Table:
    """Return a table with a row for each experiment: its metric between its references."""
    from rich.table import Table
    from rich.text import Text

    from tasks.report.main_tables import main_table
    from tasks.suite.summary import summarise

    content = main_table(summarise(result))
    table = Table(title=content.caption, box=None, title_justify="left", pad_edge=False)
    for number, head in enumerate(content.head):
        table.add_column(head, justify="left" if number == 0 else "right")
    for row in content.rows:
        table.add_row(
            *(Text(cell.text + (f" ({cell.note})" if cell.note else ""), "bold" if cell.strong else "") for cell in row)
        )
    return table
