"""``fedbench suite export`` and ``import``: move the finished cells of a suite run to another machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.shared import Home, home_option, machine_settings, out, plain_errors, say, shell_quoted
from flows.commands.arguments import choose_suite
from infra.files.private import private_home
from tasks.plain_text import plain
from tasks.spec.suite import with_seeds
from tasks.spec.suite_presets import SUITES


def export_cells(
    name: Annotated[str, typer.Argument(metavar="SUITE_RUN", help="`fedbench suite list` shows them.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An earlier export of the suite run is replaced.")],
    home: Home = None,
) -> None:
    """Write the finished cells of a suite run to a file of text, without weights.

    `fedbench suite import` takes them over on another machine, where the suite goes on with the other cells.

    `fedbench suite export cpu-bd604acf docs/results/cpu.json`
    """
    with plain_errors():
        from flows.stored.runs import opened_store
        from flows.suite.moving import export_suite, write_export

        settings = machine_settings(home)
        with opened_store(settings) as objects:
            export = export_suite(objects, settings, name)
        size = write_export(export, file)
        codes = ", ".join(dict.fromkeys(record.code_version for record in export.cells.values()))
        _print(f"exported {_cells(len(export.cells))} of code {codes}: {shell_quoted(file)}, {size / 1e3:.1f} kB")


def import_cells(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of `fedbench suite export`.")],
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="The suite run that takes the cells. [the file's]")
    ] = None,
    what: Annotated[
        str | None,
        typer.Option(
            "--suite",
            metavar="SUITE",
            help=f"The suite of this run: a YAML file, or one of {', '.join(SUITES)}. [the store's, else the file's]",
        ),
    ] = None,
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", help="A seed of --suite, instead of its own; repeatable.")
    ] = None,
    home: Home = None,
) -> None:
    """Take over the finished cells of a suite run from another machine's export. Runs nothing.

    A cell that is here already with the same figures stays; one with other figures is an error. Afterwards
    `fedbench suite run` goes on with the cells that are missing.

    `fedbench suite import docs/results/cpu.json` · `fedbench suite import seed-2.json --suite cpu --name cpu-1`
    """
    with plain_errors():
        from flows.stored.runs import opened_store
        from flows.suite.export_file import read_export
        from flows.suite.moving import import_suite
        from flows.suite.plan import pinned
        from tasks.code_version import code_version
        from tasks.errors import SpecError

        if seeds and what is None:
            raise SpecError("--seed: expected --suite with it, whose seeds it replaces")
        settings = machine_settings(home)
        private_home(settings.home)  # before the file, so that an unusable home is reported first
        export = read_export(file)
        suite = choose_suite(what) if what is not None else None
        if suite is not None:
            suite = pinned(with_seeds(suite, seeds) if seeds else suite, settings)
        with opened_store(settings) as objects:
            done = import_suite(objects, settings, export, file, name=name, suite=suite, say=say)
        run = done.plan.name
        for code, count in done.taken.items():
            _print(f"imported {_cells(count)} into suite run {run}, of code {plain(code)}")
            if code != code_version():
                _print(f"the installed code, {code_version()}, would run cells of code {plain(code)} again")
        if done.known:
            _print(f"already in suite run {run}, with the same figures: {_cells(done.known)}")
        if done.left:
            again = f"fedbench suite run SUITE --name {run}{home_option(settings)}"
            _print(f"{_cells(len(done.left))} of {len(done.plan.to_run)} not done yet; to run them: {again}")


def _cells(number: int) -> str:
    return f"{number} cell{'' if number == 1 else 's'}"


def _print(line: str) -> None:
    out.print(line, soft_wrap=True, highlight=False)
