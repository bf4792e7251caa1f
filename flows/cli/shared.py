"""What the commands share: the terminal, errors without tracebacks, settings, fields, the log."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.text import Text

from flows.console import PlainConsole, PlainFormatter
from infra.errors import HomeInUse, InfraError, RunLocked, SettingsError
from infra.private import narrow, private_process
from infra.services.own_environment import use_own_environment
from infra.settings import Settings, load_settings
from tasks.errors import DataError, FedbenchError, SpecError

WIDE = 100  # columns that the table with all four mAPs may take
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

out = PlainConsole()
if not out.is_terminal and "COLUMNS" not in os.environ:
    out.width = WIDE  # a file or pipe has no width of its own
err = PlainConsole(stderr=True)

Home = Annotated[Path | None, typer.Option("--home", help="Where the embedded services keep everything.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="The federation's name; `fedbench list` shows them.")]


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Messages instead of tracebacks: 2 for what was asked wrongly, 1 for what failed."""
    try:
        yield
    except (SpecError, DataError, SettingsError, RunLocked, HomeInUse) as error:
        print_error("error", str(error))
        raise typer.Exit(EXIT_USAGE) from None
    except (FedbenchError, InfraError) as error:
        if logging.getLogger().handlers:  # else Python itself would write it to the terminal, with its traceback
            logging.getLogger(__name__).error("failed: %s", error, exc_info=True)
        print_error("failed", str(error))
        raise typer.Exit(EXIT_FAILED) from None


def print_error(kind: str, message: str) -> None:
    """Print ``kind: message`` on standard error, with the kind in red."""
    err.print(Text.assemble((f"{kind}:", "bold red"), " ", message), soft_wrap=True, highlight=False)


def print_command(console: PlainConsole, before: str, command: str) -> None:
    """Print ``before`` and then ``command``, which is there to be copied, in bold."""
    console.print(Text.assemble(before, (command, "bold")), soft_wrap=True, highlight=False)


def place_settings(home: Path | None, slots: int | None = None, *, deploys: bool = False) -> Settings:
    """Settings of this machine; options are fields of :class:`Settings` and win over environment and file.

    From here on this process's environment is that of its own servers. deploys: as :func:`use_own_environment` has it.
    """
    if home is not None:
        os.environ["FEDBENCH_HOME"] = str(home.expanduser().absolute())
    if slots is not None:
        os.environ["FEDBENCH_SLOTS"] = str(slots)
    settings = load_settings()
    use_own_environment(settings, deploys=deploys)
    narrowed = narrow(settings.home)
    if narrowed is not None:
        err.print(narrowed, soft_wrap=True, highlight=False, markup=False)
    return settings


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


def set_up_logging(settings: Settings, name: str, verbose: int) -> Path:
    """A log file for the run, and the terminal with ``-v``."""
    return log_to(settings.home / "runs" / name / "run.log", settings, verbose)


def log_to(path: Path, settings: Settings, verbose: int = 0) -> Path:
    """The log goes to ``path`` below the home, Prefect's too, and to the terminal when ``verbose``."""
    private_process(settings.home)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
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


def home_option(settings: Settings) -> str:
    """What a command needs to find this home again."""
    return "" if settings.home == Settings.model_fields["home"].default else f" --home {settings.home}"
