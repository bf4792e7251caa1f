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

WIDE = 100  # columns of a terminal that has room for all four mAPs
UNWRAPPED = 10_000  # columns of a file or pipe: no table is wider
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

out = PlainConsole()
if not out.is_terminal:
    out.width = UNWRAPPED  # a file or pipe has no width of its own, and programs read its lines
err = PlainConsole(stderr=True)

Home = Annotated[
    Path | None, typer.Option("--home", help="Folder of all that fedbench keeps on this machine. [~/.fedbench]")
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="The federation's name; `fedbench list` shows them.")]


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Print errors as messages, not tracebacks. Exit with code 2 for wrong usage, with 1 for a failure."""
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
        if error.filename is None:  # it names no file: a bug, or an error of a server's client
            raise
        _log_failure(error)
        print_error("error", f"{error.filename}: {error.strerror}")
        raise typer.Exit(EXIT_USAGE) from None


def _log_failure(error: Exception) -> None:
    if logging.getLogger().handlers:  # without a handler, Python would print the traceback on the terminal
        logging.getLogger(__name__).error("failed: %s", error, exc_info=True)


def _require_working_folder() -> None:
    """Check that the working folder exists: without it, no relative path has a meaning.

    Raises:
        SettingsError: it has been removed.
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
    """Raise DiskFull instead of an error that a full disk caused."""
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
    """Print on standard error which of ``views`` failed."""
    for line in views.lines():
        err.print(Text.assemble(("warning:", "yellow"), " ", line), soft_wrap=True, highlight=False)


def print_note(text: str | None) -> None:
    """Print a line that explains a table, below it; nothing for None."""
    if text is not None:
        out.print(Text(text, "dim"), soft_wrap=True, highlight=False)


def say(line: str) -> None:
    """Print a line about a command's progress on standard error, so that it stays out of the result."""
    err.print(line, soft_wrap=True, highlight=False)


def print_command(console: PlainConsole, before: str, command: str) -> None:
    """Print ``before``, then ``command`` in bold, for the user to copy."""
    console.print(Text.assemble(before, (command, "bold")), soft_wrap=True, highlight=False)


def machine_settings(
    home: Path | None, slots: int | None = None, *, deploys: bool = False, reads_only: bool = False
) -> Settings:
    """Return this machine's settings. ``home`` and ``slots`` override the environment and the settings file.

    Also makes this process's environment that of a run with these settings: see :func:`use_own_environment`, which
    gets ``deploys``. reads_only: leave the home's rights as they are.
    """
    if home is not None:
        os.environ["FEDBENCH_HOME"] = str(home.expanduser().absolute())
    if slots is not None:
        os.environ["FEDBENCH_SLOTS"] = str(slots)
    settings = load_settings()
    require_folder(settings.home)
    use_own_environment(settings, deploys=deploys)
    narrowed = None if reads_only else narrow(settings.home)
    if narrowed is not None:
        err.print(narrowed, soft_wrap=True, highlight=False)
    return settings


def field_values(assignments: list[str]) -> dict[str, Any]:
    """Return the fields that ``["training.optimizer.lr=0.01"]`` sets, with their values read as YAML.

    Raises:
        SpecError: an assignment has no ``=``, or no YAML after it, or sets a field for the second time.
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
    """Let this command continue when the reader of its output ends: it has more to do than to print."""
    out.outlives_reader = err.outlives_reader = True


class KeptLog(logging.Handler):
    """Keeps the records of the log in memory until the file that they belong to is known."""

    def __init__(self) -> None:
        super().__init__()
        self._records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)

    def write(self) -> None:
        """Log the records again, now that the log has its file."""
        for record in self._records:
            logging.getLogger(record.name).handle(record)
        self._records.clear()


@contextlib.contextmanager
def log_kept() -> Iterator[KeptLog]:
    """Keep what the block logs. Without a handler, Python would print warnings on the terminal."""
    kept, root = KeptLog(), logging.getLogger()
    root.addHandler(kept)
    try:
        yield kept
    finally:
        root.removeHandler(kept)


def set_up_logging(settings: Settings, name: str, verbose: int) -> Path:
    """Log to the run's file, and to the terminal with ``-v``. Return the file's path."""
    return log_to(run_folder(settings, name) / "run.log", settings, verbose)


def log_to(path: Path, settings: Settings, verbose: int = 0) -> Path:
    """Log to ``path`` below the home, and to the terminal if ``verbose``: Prefect's log too. Return ``path``."""
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
    # MLflow would add handlers to its own and its database's loggers. They would write to the terminal, with tracebacks
    # of errors that are only warnings here. Without these handlers the lines go to the log.
    os.environ["MLFLOW_CONFIGURE_LOGGING"] = "false"
    for name in ("mlflow", "alembic", "sqlalchemy.engine"):  # at INFO they log how they set up their tables
        logging.getLogger(name).setLevel("WARNING")
    logging.getLogger("httpx").setLevel("WARNING")
    logging.captureWarnings(True)
    # Otherwise a handler that fails, such as Prefect's without its server, writes to the terminal between our lines.
    logging.raiseExceptions = bool(verbose)
    return path


def home_option(settings: Settings) -> str:
    """Return the option by which another command finds this home; empty for the default home."""
    return "" if settings.home == Settings.model_fields["home"].default else f" --home {shell_quoted(settings.home)}"


def shell_quoted(path: Path) -> str:
    """Return ``path`` for a shell command: in quotes if it has blanks, brackets or the like."""
    return shlex.quote(str(path))
