"""What the commands share: the terminal, errors without tracebacks, settings, fields, the log."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from flows.cli.console import LogFile, PlainConsole, PlainFormatter
from infra.errors import HomeInUse, InfraError, RunLocked, SettingsError
from infra.files.disk import full_disk_named, infra_failed, says_full
from infra.files.private import narrow, private_process, require_folder
from infra.settings import Settings, load_settings, run_folder
from infra.stack.own_environment import use_own_environment
from infra.views import Views
from tasks.documents.errors import DocumentError, DuplicateKey
from tasks.documents.yaml_text import read_yaml_text
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
        with _full_disk_named():
            _require_working_folder()
            yield
    except (SpecError, DataError, SettingsError, RunLocked, HomeInUse) as error:
        print_error("error", str(error))
        raise typer.Exit(EXIT_USAGE) from None
    except (FedbenchError, InfraError) as error:
        _log_failure(error)
        print_error("failed", str(error))
        raise typer.Exit(EXIT_FAILED) from None
    except OSError as error:
        if error.filename is None:  # no file's: a mistake of the program's, or of a server's client
            raise
        _log_failure(error)
        print_error("error", f"{error.filename}: {error.strerror}")
        raise typer.Exit(EXIT_USAGE) from None


def _log_failure(error: Exception) -> None:
    if logging.getLogger().handlers:  # else Python itself would write it to the terminal, with its traceback
        logging.getLogger(__name__).error("failed: %s", error, exc_info=True)


def _require_working_folder() -> None:
    """
    Raises:
        SettingsError: this process's folder has been removed, so that no relative path means anything.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise SettingsError(
            f"expected a working folder that exists, found one that was removed ({error.strerror}); "
            "change to another one"
        ) from None


@contextlib.contextmanager
def _full_disk_named() -> Iterator[None]:
    """Raise DiskFull for any error that a full disk is behind."""
    try:
        yield
    except Exception as error:
        if isinstance(error, typer.Exit | typer.Abort) or not (infra_failed(error) or says_full(error)):
            raise
        try:
            home = load_settings().home
        except SettingsError:
            raise error from None
        with full_disk_named(home):
            raise


def print_error(kind: str, message: str) -> None:
    """Print ``kind: message`` on standard error, with the kind in red."""
    err.print(Text.assemble((f"{kind}:", "bold red"), " ", message), soft_wrap=True, highlight=False)


def print_warnings(views: Views) -> None:
    """Print which of ``views`` failed on standard error."""
    for line in views.lines():
        err.print(Text.assemble(("warning:", "yellow"), " ", line), soft_wrap=True, highlight=False)


def say(line: str) -> None:
    """Print a line about how a command goes on, on standard error, beside its result."""
    err.print(line, soft_wrap=True, highlight=False)


def print_command(console: PlainConsole, before: str, command: str) -> None:
    """Print ``before`` and then ``command``, which is there to be copied, in bold."""
    console.print(Text.assemble(before, (command, "bold")), soft_wrap=True, highlight=False)


def machine_settings(home: Path | None, slots: int | None = None, *, deploys: bool = False) -> Settings:
    """Settings of this machine; options are fields of :class:`Settings` and win over environment and file.

    From here on this process's environment is that of its own servers. deploys: as :func:`use_own_environment` has it.
    """
    if home is not None:
        os.environ["FEDBENCH_HOME"] = str(home.expanduser().absolute())
    if slots is not None:
        os.environ["FEDBENCH_SLOTS"] = str(slots)
    settings = load_settings()
    require_folder(settings.home)
    use_own_environment(settings, deploys=deploys)
    narrowed = narrow(settings.home)
    if narrowed is not None:
        err.print(narrowed, soft_wrap=True, highlight=False)
    return settings


def field_values(assignments: list[str]) -> dict[str, Any]:
    """``["training.optimizer.lr=0.01"]`` as fields with YAML values, as files of specifications have them.

    Raises:
        SpecError: no ``=`` in it, no YAML after it, or a field that is set twice.
    """
    fields: dict[str, Any] = {}
    for item in assignments:
        name, equals, text = item.partition("=")
        if not equals or not name.strip():
            raise SpecError(f"--set {item}: expected FIELD=VALUE, as in training.optimizer.lr=0.01")
        if name.strip() in fields:
            raise SpecError(f"--set {item}: expected each field once, found {name.strip()} twice")
        try:
            fields[name.strip()] = read_yaml_text(text, f"--set {item}", lines=False)
        except DuplicateKey as error:
            raise SpecError(f"--set {item}: {error}") from None
        except DocumentError as error:
            raise SpecError(f"--set {item}: expected a YAML value after =: {error}") from None
    return fields


def outlive_readers() -> None:
    """Let what reads the output end without ending this command, which has more to do than to print."""
    out.outlives_reader = err.outlives_reader = True


def set_up_logging(settings: Settings, name: str, verbose: int) -> Path:
    """A log file for the run, and the terminal with ``-v``."""
    return log_to(run_folder(settings, name) / "run.log", settings, verbose)


def log_to(path: Path, settings: Settings, verbose: int = 0) -> Path:
    """The log goes to ``path`` below the home, Prefect's too, and to the terminal when ``verbose``."""
    private_process(settings.home)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = LogFile(path)
    file.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers = [file]
    root.setLevel(settings.log_level)
    if verbose:
        from rich.logging import RichHandler

        root.addHandler(RichHandler(console=err, show_path=False, level="DEBUG" if verbose > 1 else "INFO"))
    # Prefect sets up logging when it is imported; its console handler would write through the live display.
    os.environ["PREFECT_LOGGING_ROOT_HANDLERS"] = ""
    # MLflow would give its loggers and those of its database handlers of their own, which write to the terminal:
    # tracebacks too, of what is only a warning to us. So they get none, and their lines go to the log.
    os.environ["MLFLOW_CONFIGURE_LOGGING"] = "false"
    for name in ("mlflow", "alembic", "sqlalchemy.engine"):  # below that they tell of their tables
        logging.getLogger(name).setLevel("WARNING")
    logging.getLogger("httpx").setLevel("WARNING")
    logging.captureWarnings(True)
    # Else a handler that fails, as Prefect's when its server is away, writes to the terminal, between our lines.
    logging.raiseExceptions = bool(verbose)
    return path


def home_option(settings: Settings) -> str:
    """What a command needs to find this home again."""
    return "" if settings.home == Settings.model_fields["home"].default else f" --home {pasted(settings.home)}"


def pasted(path: Path) -> str:
    """``path`` as a shell takes it: in quotes if it has blanks, brackets and the like."""
    return shlex.quote(str(path))
