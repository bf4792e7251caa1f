"""The command ``fedbench``. Related commands share a module.

Each command imports the heavy packages that it needs itself, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from flows.cli.accepting import accept
from flows.cli.cleaning import clean, remove
from flows.cli.data import data_app
from flows.cli.deploying import deploy
from flows.cli.exporting import export_model, register
from flows.cli.models import evaluate, predict, save_model, verify
from flows.cli.moving import export_cells, import_cells
from flows.cli.original import export, original_app
from flows.cli.runs import report, resume, run
from flows.cli.served import serve, ui
from flows.cli.shared import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, out, print_error
from flows.cli.silos import silo_policy
from flows.cli.slurm import slurm_app
from flows.cli.stack import down, logs, status, up
from flows.cli.stored import compare, list_runs, show
from flows.cli.suite import suite_app
from infra.files.disk import says_full
from tasks.plain_text import visible


class _ByHeading(TyperGroup):
    """The commands in the order of :data:`COMMANDS`. Typer would list groups of commands last."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names for ``--help``."""
        headings = list(COMMANDS)
        return sorted(super().list_commands(ctx), key=lambda name: headings.index(self.commands[name].rich_help_panel))  # type: ignore[attr-defined]


app = typer.Typer(
    name="fedbench",
    cls=_ByHeading,
    help="Federated object-detection benchmark: detectors trained by FedAvg over street cameras.\n\n"
    "Start with `fedbench run` (synthetic cameras, minutes on two cores). The same command continues a run "
    "that was killed.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)


def version() -> None:
    """Print the versions of fedbench, torch, Prefect and MLflow."""
    out.print(
        " · ".join(f"{package} {metadata.version(package)}" for package in ("fedbench", "torch", "prefect", "mlflow"))
    )


def _print_version(asked: bool) -> None:
    if asked:
        version()
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the versions, as `version` does."
        ),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


# The commands by the heading that they have in ``--help`` and in docs/commands.md.
COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "Federations": (run, resume, report, list_runs, show, compare, ui, export, remove),
    "Suites": (accept,),
    "Models": (evaluate, predict, save_model, export_model, register, serve, verify),
    "Data": (),
    "Servers and machines": (up, down, status, logs, deploy, silo_policy, clean, version),
}
for _heading, _commands in COMMANDS.items():
    for _command in _commands:
        app.command("list" if _command is list_runs else None, rich_help_panel=_heading)(_command)
suite_app.command("export")(export_cells)
suite_app.command("import")(import_cells)
for _heading, _group in (
    ("Suites", suite_app),
    ("Data", data_app),
    ("Data", original_app),
    ("Servers and machines", slurm_app),
):
    app.add_typer(_group, rich_help_panel=_heading)


def _drop_output() -> None:
    """Discard the buffered rest of standard output: Python would fail to write it again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Run the command line. Print errors that are meant for the user without a traceback."""
    try:
        # With standalone_mode=False, Click returns an exit code instead of raising it.
        sys.exit(app(standalone_mode=False) or 0)
    except typer.Abort:
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        # Click's usage errors have a method that prints them, and an exit code.
        show = getattr(error, "show", None)
        if show is None and says_full(error):  # the disk that the output goes to
            print_error("failed", next(iter(str(error).splitlines()), "no space left on device"))
            _drop_output()
            sys.exit(EXIT_FAILED)
        if show is None:
            # As Python prints it, but with visible control characters.
            sys.stderr.write(visible(traceback.format_exc()))
            sys.exit(EXIT_FAILED)
        show()
        sys.exit(getattr(error, "exit_code", EXIT_USAGE))
