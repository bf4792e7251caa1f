"""``fedbench clean`` removes leftovers; ``fedbench remove`` removes a whole federation."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.shared import EXIT_FAILED, Home, RunName, err, log_to, machine_settings, out, plain_errors, say
from infra.errors import InfraError
from infra.plain_text import first_line
from infra.settings import Settings
from tasks.errors import FedbenchError

if TYPE_CHECKING:
    from rich.table import Table

    from flows.stored.leftovers import CleanUp


def clean(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", help="Federations to clean. [all, and this machine]")
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Remove the leftovers; otherwise they are only listed.")
    ] = False,
    older_than: Annotated[
        float,
        typer.Option(
            metavar="DAYS",
            min=0,
            help="Treat an unfinished round as abandoned, or a federation as a toy, after so many days without a new "
            "object of the federation.",
        ),
    ] = 7.0,
    run_folders: Annotated[
        bool, typer.Option("--run-folders", help="Also remove folders of runs whose federation is not in the store.")
    ] = False,
    toys: Annotated[
        bool, typer.Option("--toys", help="Whole federations of synthetic images instead, by the rule that it prints.")
    ] = False,
    keys: Annotated[
        bool, typer.Option("--keys", "-k", help="Print the key of every object and the path of every file.")
    ] = False,
    home: Home = None,
) -> None:
    """List what retention, dead runs and killed servers left in the store and on this machine. --apply removes it.

    `fedbench clean` · `fedbench clean --apply --older-than 2` · `fedbench clean --toys --older-than 0`

    Running federations, here or elsewhere, records, and the best and the last two global models are never touched.
    Only --toys removes whole federations.
    """
    if toys:
        _clean_toys(names or [], apply, older_than, home)
        return
    from flows.stored.leftovers import clean as find
    from flows.stored.leftovers import describe

    with plain_errors():
        settings = machine_settings(home)
        chosen = tuple(names or ())
        if apply:
            result = _applied(settings, chosen, older_than, run_folders)
        else:
            result = find(
                settings, apply=False, older_than_days=older_than, names=chosen, run_folders=run_folders, say=say
            )
    if result.leftovers:
        out.print(_table(result))
    if keys:
        for leftover in result.leftovers:
            out.print(f"{leftover.bytes:>13,}  {leftover.key}", soft_wrap=True, highlight=False)
    for note in result.notes:
        out.print(note, soft_wrap=True, highlight=False)
    for key, reason in result.failed.items():
        err.print(f"not removed: {key}: {reason}", soft_wrap=True, highlight=False)
    if not result.leftovers:
        out.print("nothing to remove")
    elif apply:
        gone = [leftover for leftover in result.leftovers if leftover.key not in result.failed]
        out.print(f"removed: {describe(gone)}", highlight=False)
    else:
        out.print(f"would be removed with --apply: {describe(result.leftovers)}", highlight=False)
    if result.failed:
        raise typer.Exit(EXIT_FAILED)


def _clean_toys(names: list[str], apply: bool, older_than: float, home: Path | None) -> None:
    """List the toys in the store and their rule. With ``apply``, remove them."""
    from rich.table import Table

    from flows.stored.toys import RULE, clean_toys

    with plain_errors():
        settings = machine_settings(home)
        result = clean_toys(settings, apply=apply, older_than_days=older_than, names=names, say=say)
        out.print(f"rule: {RULE.format(days=older_than)}", soft_wrap=True, highlight=False)
    if not result.toys:
        out.print("nothing to remove")
        return
    table = Table("federation", "last written", box=None)
    table.columns[0].no_wrap = True
    for title in ("objects", "MB"):
        table.add_column(title, justify="right")
    for toy in result.toys:
        written = toy.written.astimezone().strftime("%Y-%m-%d %H:%M")
        table.add_row(toy.name, written, str(toy.objects), f"{toy.bytes / 1e6:,.1f}")
    out.print(table)
    for name, reason in result.failed.items():
        err.print(f"not removed: {name}: {reason}", soft_wrap=True, highlight=False)
    what = "removed" if apply else "would be removed with --apply"
    out.print(f"{what}: {result.describe()}", highlight=False)
    if result.failed:
        raise typer.Exit(EXIT_FAILED)


def _applied(settings: Settings, names: tuple[str, ...], older_than: float, run_folders: bool) -> CleanUp:
    """Remove leftovers through the flow, so that Prefect keeps a table of what was removed.

    Raises:
        FedbenchError, InfraError: the flow failed; or Prefect's API did, and the log says what was removed before.
    """
    from flows.coordinator.planted import hold_back_planted
    from flows.coordinator.session import own_prefect, prefect_drained
    from infra.stack.embedded import EmbeddedServices

    path = log_to(settings.home / "logs" / "clean-up.log", settings)
    services = EmbeddedServices(settings)
    own_prefect(settings)
    with services:
        os.environ.update(services.prefect_environment())
        hold_back_planted(settings, services.prefect, lambda line: err.print(line, soft_wrap=True, highlight=False))
        from flows.clean_up import clean_up
        from flows.stored.leftovers import CleanUp

        try:
            with prefect_drained():
                result = asyncio.run(
                    clean_up(apply=True, older_than_days=older_than, runs=list(names) or None, run_folders=run_folders)
                )
        except (FedbenchError, InfraError):
            raise
        except Exception as error:
            raise InfraError(f"Prefect at {services.prefect_api_url}: {first_line(error)}; log: {path}") from error
    assert isinstance(result, CleanUp)  # no toys
    return result


def _table(result: CleanUp) -> Table:
    from rich.table import Table

    table = Table("federation", "reason", box=None)
    table.add_column("objects", justify="right")
    table.add_column("MB", justify="right")
    table.columns[0].no_wrap = True
    for row in result.rows():
        size = row["bytes"]
        assert isinstance(size, int)
        stayed = f" ({row['not removed']} not removed)" if row["not removed"] else ""
        table.add_row(str(row["federation"]), f"{row['reason']}{stayed}", str(row["objects"]), f"{size / 1e6:,.1f}")
    return table


def remove(
    name: RunName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    home: Home = None,
) -> None:
    """Delete a federation's weights, records and run folder for good. Refused while any process runs it.

    If its coordinator died on another machine, this waits for a minute at most, then goes on by itself.

    Its MLflow run, registered model and Prefect runs stay.
    """
    from flows.stored.removal import federation_size, remove_federation

    with plain_errors():
        settings = machine_settings(home)
        if not yes:
            objects, size = federation_size(settings, name)
            typer.confirm(f"remove {name}: {objects} objects, {size / 1e6:,.1f} MB?", abort=True)
        objects, size = remove_federation(settings, name, say)
    out.print(f"removed {name}: {objects} objects, {size / 1e6:,.1f} MB", highlight=False)
