"""The command ``fedbench``: run, resume, show, list, compare, ui; the other commands are in files of their own.

Heavy packages are imported by the commands that need them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console

from flows.data_cli import data_app
from flows.model_cli import evaluate, predict, save_model
from flows.original_cli import export, original_app
from infra.errors import InfraError, RunLocked, SettingsError, StoreCorrupt
from infra.settings import Settings, load_settings
from tasks.errors import DataError, FedbenchError, SpecError
from tasks.spec.centralised import twin
from tasks.spec.federation import FederationSpec, MapName, load_spec, with_fields
from tasks.spec.presets import PRESETS, preset

if TYPE_CHECKING:
    from flows.run import Outcome

WIDE = 100  # columns that the table with all four mAPs may take
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

out = Console()
err = Console(stderr=True)
app = typer.Typer(
    name="fedbench",
    help="Federated object-detection benchmark: detectors trained by FedAvg over street cameras.\n\n"
    "Start with `fedbench run` (synthetic cameras, minutes on two cores). A run that was killed goes on with the "
    "same command.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)

app.add_typer(data_app)
app.add_typer(original_app)
app.command()(export)

Verbose = Annotated[int, typer.Option("--verbose", "-v", count=True, help="Log to the terminal too; -vv: all of it.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result.")]
Home = Annotated[Path | None, typer.Option("--home", help="Where the embedded services keep everything.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="The federation's name; `fedbench list` shows them.")]


def main() -> None:
    """Entry point: errors that are meant for the user are printed without a traceback."""
    try:
        # Not standalone, an exit code is handed back instead of being raised.
        sys.exit(app(standalone_mode=False) or 0)
    except typer.Abort:
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        # Click's usage errors know how to show themselves, and which code they end with.
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        sys.exit(getattr(error, "exit_code", EXIT_USAGE))


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Messages instead of tracebacks: 2 for what was asked wrongly, 1 for what failed."""
    try:
        yield
    except (SpecError, DataError, SettingsError, RunLocked) as error:
        err.print(f"[bold red]error:[/] {_escaped(error)}", soft_wrap=True, highlight=False)
        raise typer.Exit(EXIT_USAGE) from None
    except (FedbenchError, InfraError) as error:
        logging.getLogger(__name__).error("failed: %s", error, exc_info=True)
        err.print(f"[bold red]failed:[/] {_escaped(error)}", soft_wrap=True, highlight=False)
        raise typer.Exit(EXIT_FAILED) from None


def _escaped(error: Exception) -> str:
    return str(error).replace("[", "\\[")


def place_settings(home: Path | None, slots: int | None = None) -> Settings:
    """Settings of this machine; options are fields of :class:`Settings` and win over environment and file."""
    if home is not None:
        os.environ["FEDBENCH_HOME"] = str(home.expanduser().absolute())
    if slots is not None:
        os.environ["FEDBENCH_SLOTS"] = str(slots)
    return load_settings()


def field_values(assignments: list[str]) -> dict[str, Any]:
    """``["training.optimizer.lr=0.01"]`` as fields with YAML values.

    Raises:
        SpecError: no ``=`` in it.
    """
    fields = {}
    for item in assignments:
        name, equals, text = item.partition("=")
        if not equals or not name.strip():
            raise SpecError(f"--set {item}: expected FIELD=VALUE, as in training.optimizer.lr=0.01")
        try:
            fields[name.strip()] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise SpecError(f"--set {item}: expected a YAML value after =") from None
    return fields


def choose_spec(what: str, fields: dict[str, Any]) -> tuple[str, FederationSpec]:
    """The specification of a preset or file with fields set, and the base of its default name."""
    path = Path(what)
    from_file = path.suffix in {".yaml", ".yml", ".json"} or (path.exists() and what not in PRESETS)
    spec = load_spec(path) if from_file else preset(what)
    base = path.stem if from_file else what
    return base, with_fields(spec, fields, source=what) if fields else spec


def default_name(base: str, spec: FederationSpec) -> str:
    """``street5-ed9332d5``, or ``street5-0a1b2c3d-centralised``."""
    return f"{base}-{spec.digest[:8]}{'-centralised' if spec.data.pooled else ''}"


def set_up_logging(settings: Settings, name: str, verbose: int) -> Path:
    """A log file for the run, and the terminal with ``-v``."""
    folder = settings.home / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.log"
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers = [file]
    root.setLevel(settings.log_level)
    if verbose:
        from rich.logging import RichHandler

        root.addHandler(RichHandler(console=err, show_path=False, level="DEBUG" if verbose > 1 else "INFO"))
    # Prefect sets up logging when it is imported; its console handler would write through the live display.
    os.environ["PREFECT_LOGGING_ROOT_HANDLERS"] = ""
    os.environ["MLFLOW_LOGGING_LEVEL"] = "WARNING"  # it tells of its tables on the terminal
    logging.getLogger("httpx").setLevel("WARNING")
    logging.captureWarnings(True)
    return path


@app.command()
def run(
    what: Annotated[
        str, typer.Argument(metavar="SPEC", help=f"A YAML file, or a preset: {', '.join(PRESETS)}.")
    ] = "synthetic5",
    name: Annotated[str | None, typer.Option("--name", "-n", help="The federation's name. [SPEC and digest]")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="FIELD=VALUE", help="A field of the specification; again for more."),
    ] = None,
    max_rounds: Annotated[int | None, typer.Option(help="The last round; raise it to extend a finished run.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw.")] = None,
    slots: Annotated[int | None, typer.Option(help="Turns at a time. [cores // threads]")] = None,
    centralised: Annotated[
        bool, typer.Option("--centralised", help="All training images at one client: the reference for the federation.")
    ] = False,
    home: Home = None,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Run a federation; the same command again goes on where it was killed.

    `fedbench run` · `fedbench run street5 --seed 1` · `fedbench run my.yaml -s training.optimizer.lr=0.0005` ·
    `fedbench run street5 --centralised`
    """
    with plain_errors():
        fields = field_values(assignments or [])
        fields |= {key: value for key, value in (("max_rounds", max_rounds), ("seed", seed)) if value is not None}
        base, spec = choose_spec(what, fields)
        if centralised:
            spec = twin(spec)
        settings = place_settings(home, slots)
        _run(name or default_name(base, spec), spec, settings, verbose, quiet)


@app.command()
def resume(
    name: RunName,
    max_rounds: Annotated[int | None, typer.Option(help="A larger last round extends the run.")] = None,
    slots: Annotated[int | None, typer.Option(help="Turns at a time. [cores // threads]")] = None,
    home: Home = None,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Go on with a federation from its last committed round."""
    from flows.stored import stored_spec

    with plain_errors():
        settings = place_settings(home, slots)
        spec = stored_spec(settings, name)
        if max_rounds is not None:
            spec = with_fields(spec, {"max_rounds": max_rounds}, source=name)
        _run(name, spec, settings, verbose, quiet)


def _run(name: str, spec: FederationSpec, settings: Settings, verbose: int, quiet: bool) -> None:
    from flows.progress import make_progress
    from flows.run import describe, run_federation
    from tasks.spec.base import check_name

    check_name(name, source="--name")
    log_path = set_up_logging(settings, name, verbose)
    progress = make_progress(out, quiet)
    progress.federation_started(name, describe(spec), spec.max_rounds)
    command = f"fedbench resume {name}" + _home_option(settings)
    try:
        outcome = run_federation(name, spec, settings, progress)
    except KeyboardInterrupt:
        progress.close()
        err.print(f"\ninterrupted; nothing committed is lost. Go on with: [bold]{command}[/]", soft_wrap=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (SpecError, DataError, SettingsError, RunLocked, StoreCorrupt):
        raise
    except (FedbenchError, InfraError):
        err.print(f"log: {log_path} · go on with: [bold]{command}[/]", soft_wrap=True, highlight=False)
        raise
    except Exception as error:
        logging.getLogger(__name__).exception("failed")
        progress.close()
        err.print(f"[bold red]failed:[/] {type(error).__name__}: {_escaped(error)}", soft_wrap=True, highlight=False)
        err.print(f"log: {log_path} · go on with: [bold]{command}[/]", soft_wrap=True, highlight=False)
        raise typer.Exit(EXIT_FAILED) from None
    finally:
        progress.close()
    print_outcome(name, outcome, settings)


def _home_option(settings: Settings) -> str:
    return "" if settings.home == Settings.model_fields["home"].default else f" --home {settings.home}"


def print_outcome(name: str, outcome: Outcome, settings: Settings) -> None:
    """The per-round table, the plots, and how to see the run in a browser."""
    from flows.progress import best_line, round_table

    out.print()
    if outcome.already_finished:
        out.print(f"{name} is finished; nothing was left to do.")
    out.print(round_table(outcome.records))
    best = best_line(outcome.records[-1].decision)
    if best is not None:
        out.print(f"best: {best}", highlight=False)
    if outcome.model is not None:
        out.print(f"model: {outcome.model}", soft_wrap=True, highlight=False)
    out.print(f"plots: {outcome.folder}", soft_wrap=True, highlight=False)
    out.print(f"pages: [bold]fedbench ui {name}{_home_option(settings)}[/]", soft_wrap=True, highlight=False)


@app.command()
def show(
    name: RunName,
    classes: Annotated[bool, typer.Option("--classes", "-c", help="The best round's figures by class too.")] = False,
    home: Home = None,
) -> None:
    """The rounds of a federation, as the store has them; with all four mAPs where there is room for them."""
    from flows.progress import best_line, class_table, round_table
    from flows.run import describe
    from flows.stored import opened_store, read_run

    with plain_errors():
        settings = place_settings(home)
        with opened_store(settings) as objects:
            stored = read_run(objects, settings, name)
        out.print(f"[bold]{name}[/] · {describe(stored.spec)} · spec {stored.spec.digest[:12]} · {stored.status}")
        if stored.records:
            # A file or pipe has no width of its own.
            width = out.width if out.is_terminal else max(out.width, WIDE)
            out.print(round_table(stored.records, wide=width >= WIDE), width=width, crop=False)
            decision, environment = stored.records[-1].decision, stored.records[-1].environment
            if (best := best_line(decision)) is not None:
                out.print(f"best: {best}", highlight=False)
            if classes:
                out.print(class_table(stored.records[decision.best_round]))
            out.print(
                f"torch {environment.torch} · {environment.cpu} · {environment.threads} thread(s) a turn",
                highlight=False,
            )
        for record in stored.records:
            for failure in record.dropped:
                out.print(
                    f"round {record.round}: client {failure.client} dropped ({failure.kind}): {failure.reason}",
                    soft_wrap=True,
                    highlight=False,
                    markup=False,
                )


@app.command(name="list")
def list_runs(home: Home = None) -> None:
    """The federations in the store: rounds, state, best figures."""
    from rich.table import Table

    from flows.stored import opened_store, read_runs

    with plain_errors():
        settings = place_settings(home)
        table = Table("federation", "state", "rounds", "best", "specification", box=None)
        with opened_store(settings) as objects:
            for stored in read_runs(objects, settings):
                last = stored.records[-1].decision if stored.records else None
                table.add_row(
                    stored.name,
                    stored.status,
                    f"{max(len(stored.records) - 1, 0)}/{stored.spec.max_rounds}",
                    "–" if last is None or last.best is None else f"{last.best_metric} {last.best:.3f}",
                    f"{stored.spec.data.kind} · {stored.spec.detector.kind} · {stored.spec.digest[:8]}",
                )
        out.print(table if table.row_count else "no federation yet; start with: fedbench run")


@app.command()
def compare(
    names: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Federations; the first is the yardstick.")],
    metric: Annotated[MapName, typer.Option(help="What is drawn, and makes a round the best.")] = "map50_voc10",
    folder: Annotated[Path | None, typer.Option("--out", help="Folder of the figure and the CSV. [below home]")] = None,
    home: Home = None,
) -> None:
    """Federations side by side: figures by measure and class, costs, what they differ in; and one figure.

    `fedbench compare street5-ed9332d5 street5-0a1b2c3d-centralised`
    """
    from flows import compare as comparison

    with plain_errors():
        settings = place_settings(home)
        compared = comparison.read_compared(settings, names, metric)
        paths = comparison.write_comparison(compared, metric, folder or comparison.default_folder(settings, names))
    width = out.width if out.is_terminal else max(out.width, WIDE)
    out.print(comparison.comparison_table(compared, metric), width=width, crop=False)
    lines = [f"warning: {line}" for line in comparison.warnings(compared)]
    lines += [*comparison.gaps(compared, metric), *comparison.differences(compared)]
    for line in (*lines, *(f"written: {path}" for path in paths)):
        out.print(line, soft_wrap=True, highlight=False, markup=False)


@app.command()
def ui(
    name: RunName,
    home: Home = None,
    browser: Annotated[bool, typer.Option(help="Open the pages in a browser.")] = True,
) -> None:
    """Serve Prefect's and MLflow's pages of a federation until Ctrl-C."""
    from flows.pages import serve_pages

    with plain_errors():
        serve_pages(place_settings(home), name, out, open_browser=browser)


@app.command()
def serve(
    name: RunName,
    home: Home = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0: all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5001,
) -> None:
    """Serve a federation's best model over HTTP until Ctrl-C."""
    from flows.serving import serve_model

    with plain_errors():
        raise typer.Exit(serve_model(place_settings(home), name, out, host=host, port=port))


@app.command()
def version() -> None:
    """The version of fedbench and of what it computes with."""
    out.print(
        " · ".join(f"{package} {metadata.version(package)}" for package in ("fedbench", "torch", "prefect", "mlflow"))
    )


for _command in (evaluate, predict, save_model):
    app.command()(_command)


if __name__ == "__main__":
    main()
