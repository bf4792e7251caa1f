"""``fedbench accept``: choose the result of a suite that its later results are compared with."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.shared import Home, machine_settings, out, plain_errors
from tasks.errors import SpecError

if TYPE_CHECKING:
    from tasks.spec.suite_records import AcceptedResult
    from tasks.suite.regression import Comparison


def accept(
    suite_run: Annotated[
        str | None, typer.Argument(metavar="SUITE_RUN", help="The suite run whose result you accept.")
    ] = None,
    note: Annotated[str, typer.Option(metavar="TEXT", help="Why you accept it; stored with the result.")] = "",
    incomplete: Annotated[
        bool,
        typer.Option(
            "--incomplete", help="Accept it even if cells failed or are missing; these are not compared later."
        ),
    ] = False,
    shown: Annotated[
        str | None, typer.Option("--show", metavar="SUITE", help="Only print the accepted result and those before it.")
    ] = None,
    home: Home = None,
) -> None:
    """Accept the result of a suite run: later results of this suite are compared with it.

    Prints the result that it replaces, and how the two compare. The replaced result is kept.

    `fedbench accept nightly-20260101 --note "new optimiser"` · `fedbench accept --show nightly`
    """
    with plain_errors():
        if (suite_run is None) == (shown is None):
            raise SpecError("SUITE_RUN: expected the name of a suite run, or --show SUITE, and not both")
        if shown is not None:
            _show(shown, home)
        elif suite_run is not None:
            _accept(suite_run, note, incomplete, home)


def _accept(suite_run: str, note: str, incomplete: bool, home: Home) -> None:
    from flows.stored.runs import opened_store
    from flows.suite.accepted import accept as make_accepted
    from flows.suite.accepted import accepted_result, compare_with_accepted, suite_result, suite_rule

    settings = machine_settings(home)
    prefix = settings.s3.prefix
    with opened_store(settings) as objects:
        result = suite_result(objects, prefix, suite_run)
        before = accepted_result(objects, prefix, result.suite)
        comparison = compare_with_accepted(objects, prefix, result, suite_rule(objects, prefix, suite_run))
        accepted = make_accepted(objects, prefix, suite_run, by=_user(), note=note, incomplete=incomplete)
    _print(f"{result.suite}: accepted {_one_line(accepted)}")
    if before is None:
        _print("replaces nothing: it is the first")
    else:
        _print(f"replaces {_one_line(before)}")
    if comparison is not None:
        print_comparison(comparison)


def _show(suite: str, home: Home) -> None:
    from flows.stored.runs import opened_store
    from flows.suite.accepted import accepted_before, accepted_result, known_suites
    from tasks.spec.base import check_name

    check_name(suite, source="--show")
    settings = machine_settings(home)
    prefix = settings.s3.prefix
    with opened_store(settings) as objects:
        accepted = accepted_result(objects, prefix, suite)
        if accepted is None:
            known = ", ".join(known_suites(objects, prefix)) or "(none yet)"
            raise SpecError(f"{suite}: no accepted result of this suite; expected one of: {known}")
        history = accepted_before(objects, prefix, suite)
    _print(f"{suite}: {_one_line(accepted)}")
    for item in reversed(history):
        _print(f"before: {_one_line(item)}")


def print_comparison(comparison: Comparison) -> None:
    """Print the regressions, the improvements and the notes of ``comparison``, one a line."""
    worse, better = len(comparison.regressions), len(comparison.improvements)
    _print(
        f"{comparison.result_run} against {comparison.reference_run}: {comparison.compared} figures compared, "
        f"{worse} worse, {better} better"
    )
    for regression in comparison.regressions:
        _print(f"worse: {regression.message}")
    for improvement in comparison.improvements:
        _print(f"better: {improvement.message}")
    for note in comparison.notes:
        _print(f"note: {note}")


def _one_line(accepted: AcceptedResult) -> str:
    """Return ``nightly-1, 12 cells, code 1a2b3c, accepted 2026-01-01 03:00 UTC by ada: new optimiser``."""
    result = accepted.result
    count = f"{len(result.cells)} cell{'' if len(result.cells) == 1 else 's'}"
    lacking = len(result.failed) + len(result.missing)
    without = f" ({lacking} without a result)" if lacking else ""
    when = f"accepted {accepted.accepted:%Y-%m-%d %H:%M} UTC by {accepted.by}"
    return f"{result.suite_run}, {count}{without}, code {result.code_version}, {when}" + (
        f": {accepted.note}" if accepted.note else ""
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # in a container whose user has no name
        return "unknown"


def _print(line: str) -> None:
    out.print(line, soft_wrap=True, highlight=False)
