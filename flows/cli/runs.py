"""``fedbench run``, ``resume`` and ``report``."""

from __future__ import annotations

import logging
import os
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.shared import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    Home,
    RunName,
    err,
    field_values,
    home_option,
    log_kept,
    machine_settings,
    out,
    outlive_readers,
    plain_errors,
    print_command,
    print_error,
    print_note,
    say,
    set_up_logging,
    shell_quoted,
)
from flows.commands.arguments import DATA_ROOTS, choose_federation
from flows.commands.data_block import data_lines
from infra.errors import DiskFull, InfraError, RunLocked, SettingsError, StoreCorrupt
from infra.files.disk import full_disk_named
from infra.settings import Settings
from infra.store.clock import clock_behind
from tasks.errors import DataError, FedbenchError, SpecError
from tasks.plain_text import visible
from tasks.spec.federation import FederationSpec, with_fields
from tasks.spec.presets import PRESETS
from tasks.spec.references import twin

if TYPE_CHECKING:
    from flows.cli.shared import KeptLog
    from flows.commands.run_name import NamedRun
    from flows.coordinator.outcome import Outcome

Verbose = Annotated[
    int, typer.Option("--verbose", "-v", count=True, help="Log to the terminal too; -vv: the whole log.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result.")]


@dataclass(frozen=True)
class Found:
    """Lines for the user, and lines of the log, of the time before the federation's name was known."""

    lines: list[str]
    log: KeptLog


def run(
    what: Annotated[
        str,
        typer.Argument(metavar="SPEC", help=f"A YAML file, a folder of data, or a preset: {', '.join(PRESETS)}."),
    ] = "synthetic5",
    name: Annotated[str | None, typer.Option("--name", "-n", help="The federation's name. [SPEC and digest]")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="FIELD=VALUE", help="A field of the specification; repeatable."),
    ] = None,
    max_rounds: Annotated[
        int | None, typer.Option(help="The last round. A larger one extends the run of the same specification.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw.")] = None,
    slots: Annotated[int | None, typer.Option(help="Turns at a time. [cores // threads]")] = None,
    centralised: Annotated[
        bool, typer.Option("--centralised", help="All training images at one client: the reference for the federation.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the specification whole, and what would happen. Start and write nothing."
        ),
    ] = False,
    home: Home = None,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Run a federation. The same command continues a run that was killed or extended.

    `fedbench run DIR` recognises the form of a folder of data, and learns them with the detector and training of
    street5_laptop.

    `fedbench run` · `fedbench run street5 --seed 1` · `fedbench run my.yaml -s training.optimizer.lr=0.0005` ·
    `fedbench run street5 -s strategy.kind=fedadam -s strategy.server_lr=0.03` · `fedbench run street5 --centralised`
    """
    with plain_errors():
        fields = field_values(assignments or [])
        fields |= {key: value for key, value in (("max_rounds", max_rounds), ("seed", seed)) if value is not None}
        chosen = choose_federation(what, fields)
        spec = twin(chosen.spec) if centralised else chosen.spec
        if dry_run:
            _dry_run(chosen.settings(machine_settings(home, slots, reads_only=True)), name, chosen.base, spec)
            return
        settings = chosen.settings(machine_settings(home, slots))
        variable = ""
        if chosen.folder is not None:
            if not quiet:
                for line in data_lines(chosen.spec.data, chosen.folder, chosen.divided):
                    say(visible(line))
            variable = f"{DATA_ROOTS}={shlex.quote(os.environ.get(DATA_ROOTS, '{}'))} "
        if name is not None:
            _run(name, spec, settings, verbose, quiet, variable=variable)
            return
        with log_kept() as log:
            found, notes = _named(chosen.base, spec, settings, quiet)
        _run(found.name, found.spec, settings, verbose, quiet, variable=variable, found=Found(notes, log))


def _named(base: str, spec: FederationSpec, settings: Settings, quiet: bool) -> tuple[NamedRun, list[str]]:
    """Return the federation that a command without a name means, and lines about it and its data."""
    from flows.commands.run_name import find_run
    from infra.files.private import private_home

    private_home(settings.home)
    lines: list[str] = []
    if not quiet:
        say("reading data")
    found = find_run(settings, base, spec, lines.append)
    return found, [*lines, *([found.note] if found.note else [])]


def _dry_run(settings: Settings, name: str | None, base: str, spec: FederationSpec) -> None:
    from flows.commands.dry_run import dry_run
    from tasks.spec.base import check_name

    if name is not None:
        check_name(name, source="--name")
    logging.getLogger().addHandler(logging.NullHandler())  # warnings about the data are lines of the result
    found = dry_run(settings, name, base, spec)
    out.print(found.text, end="", soft_wrap=True, highlight=False)
    if found.refusal is not None:
        raise found.refusal


def resume(
    name: RunName,
    max_rounds: Annotated[int | None, typer.Option(help="The last round; a larger one extends the run.")] = None,
    from_round: Annotated[
        int | None,
        typer.Option("--from", metavar="ROUND", min=0, help="Go on from this round; later ones are put aside."),
    ] = None,
    retrain: Annotated[
        list[str] | None,
        typer.Option(metavar="CLIENT", help="Discard this client's stored update of the open round; repeatable."),
    ] = None,
    slots: Annotated[int | None, typer.Option(help="Turns at a time. [cores // threads]")] = None,
    home: Home = None,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Continue a federation from its last committed round.

    `fedbench resume RUN --from 7` continues from round 7 if its weights are kept, as those of the best round and the
    last two are. Later rounds stay in the store, in the federation's folder `superseded`.

    `fedbench resume RUN --retrain 3` trains client 3 again for an interrupted round.
    """
    from flows.coordinator.resuming import prepare
    from flows.stored.runs import stored_spec

    with plain_errors():
        settings = machine_settings(home, slots)
        if from_round is None and not retrain:
            spec = stored_spec(settings, name)
        else:
            spec, lines = prepare(settings, name, from_round=from_round, retrain=retrain or (), say=say)
            for line in lines:
                out.print(line, soft_wrap=True, highlight=False)
        if max_rounds is not None:
            spec = with_fields(spec, {"max_rounds": max_rounds}, source=name)
        _run(name, spec, settings, verbose, quiet)


def report(
    name: RunName,
    slots: Annotated[int | None, typer.Option(help="Turns at a time. [cores // threads]")] = None,
    home: Home = None,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Make the plots, the MLflow run, the registered model and the Prefect page of a finished federation again.

    Use it after a run that ended with warnings, or when MLflow's data are lost. Nothing is trained. Exit code 1 if a
    part fails again.
    """
    from flows.stored.runs import opened_store, read_run

    with plain_errors():
        settings = machine_settings(home, slots)
        with opened_store(settings) as objects:
            stored = read_run(objects, settings, name)
        if stored.status != "finished":
            go_on = f"go on with: fedbench resume {name}{home_option(settings)}"
            what_then = "wait for its end" if stored.status == "running" else go_on
            raise SpecError(f"{name}: expected a finished federation, found one that is {stored.status}; {what_then}")
        drawn = settings.model_copy(update={"plots": True})
        outcome = _run(name, stored.spec, drawn, verbose, quiet, report_only=True)
    if outcome.failed:
        raise typer.Exit(EXIT_FAILED)


def _run(
    name: str,
    spec: FederationSpec,
    settings: Settings,
    verbose: int,
    quiet: bool,
    *,
    report_only: bool = False,
    variable: str = "",
    found: Found | None = None,
) -> Outcome:
    """Run a federation and print its result.

    variable: the assignment that has to precede commands that continue the run.
    found: what was found before the federation had a name.
    """
    from flows.run import run_federation
    from flows.views.header import show_header
    from flows.views.terminal import make_progress
    from tasks.spec.base import check_name

    check_name(name, source="--name")
    log_path = set_up_logging(settings, name, verbose)
    outlive_readers()
    progress = make_progress(out, quiet)
    show_header(progress, name, spec)
    if found is not None:
        found.log.write()
        for line in found.lines:
            progress.message(line)
    command = f"{variable}fedbench resume {name}" + home_option(settings)
    try:
        again = f"{variable}fedbench report {name}{home_option(settings)}"
        with full_disk_named(settings.home):
            outcome = run_federation(
                name, spec, settings, progress, again=again, report_only=report_only, pinned=found is not None
            )
    except KeyboardInterrupt:
        progress.close()
        print_command(err, "\ninterrupted; no committed round is lost. Go on with: ", command)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (SpecError, DataError, SettingsError, RunLocked, StoreCorrupt):
        raise
    except DiskFull as error:
        raise DiskFull(error.found, f"make room, then `{command}`" if error.goes_on else error.advice) from None
    except (FedbenchError, InfraError):
        print_command(err, f"log: {shell_quoted(log_path)} · go on with: ", command)
        raise
    except Exception as error:
        logging.getLogger(__name__).exception("failed")
        progress.close()
        clock = clock_behind(error, settings.prefect_api_url)
        print_error("failed", f"{type(error).__name__}: {error}" + (f"; {clock}" if clock else ""))
        print_command(err, f"log: {shell_quoted(log_path)} · go on with: ", command)
        raise typer.Exit(EXIT_FAILED) from None
    finally:
        progress.close()
    print_outcome(name, outcome, settings)
    return outcome


def print_outcome(name: str, outcome: Outcome, settings: Settings) -> None:
    """Print the table of rounds, the folder of the plots, and how to open the run's pages."""
    from flows.views.files import WITHOUT_PLOTS
    from flows.views.tables import best_line, bytes_note, own_lines, own_table, round_table

    report = f"fedbench report {name}{home_option(settings)}"
    out.print()
    if outcome.already_finished:
        out.print(f"{name} is finished; nothing was left to do.")
    out.print(round_table(outcome.records))
    print_note(bytes_note(outcome.records))
    if (own := own_table(outcome.records)) is not None:
        out.print(own)
    best = best_line(outcome.records[-1].decision)
    if best is not None:
        out.print(f"best: {best}", highlight=False)
    for line in own_lines(outcome.records, outcome.tuned):
        out.print(line, soft_wrap=True, highlight=False)
    if outcome.model is not None:
        out.print(f"model: {outcome.model}", soft_wrap=True, highlight=False)
    if (outcome.folder / WITHOUT_PLOTS).exists():
        print_command(out, "plots: not drawn (setting plots); draw them with: ", report)
    else:
        out.print(f"plots: {shell_quoted(outcome.folder)}", soft_wrap=True, highlight=False)
    print_command(out, "pages: ", f"fedbench ui {name}{home_option(settings)}")
    for page in outcome.pages:
        out.print(f"  {page}", soft_wrap=True, highlight=False)
