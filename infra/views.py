"""Views of a federation: plots, MLflow, Prefect's pages. A failure in one of them is only a warning.

The result of a federation is its committed rounds in the store. Code that draws, logs or registers them does so within
:meth:`Views.showing`, so that its errors cannot fail the federation. Failed views are printed once and can be made
again.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.errors import HomeInUse, InfraError, RunLocked, StoreRefused, StoreUnavailable
from infra.plain_text import printable

log = logging.getLogger(__name__)

# A federation cannot go on without the store, and a process that lost the federation to another one must stop.
_FATAL = (StoreUnavailable, StoreRefused, RunLocked, HomeInUse)
# Prefect's exceptions that end or pause a run. Its other signals are no subclasses of Exception.
_CONTROL = ("CancelledRun", "PausedRun")
_REASON_LENGTH = 600


class Views:
    """Makes the views of one federation or suite, and records those that failed and have not been made since.

    Safe to use from several threads.
    """

    def __init__(self, again: str = "", kept: Path | None = None) -> None:
        """again: the command that makes all views again. kept: the JSON file that :meth:`keep` writes."""
        self._again, self._kept = again, kept
        self._failed: dict[str, str] = {}

    @property
    def failed(self) -> dict[str, str]:
        """The reason of each failed view, by the view's name, in the order of the failures."""
        return dict(self._failed)

    @contextmanager
    def showing(self, what: str) -> Iterator[None]:
        """Make the view ``what`` inside. Log an exception that is raised there, and go on after the block.

        A later success with the same ``what`` removes the failure.

        Raises:
            StoreUnavailable, StoreRefused, RunLocked, HomeInUse: the federation itself cannot go on.
            KeyboardInterrupt and other exceptions that are no errors: Prefect's signals, cancellation, exit.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, _FATAL) or _is_control(error):
                raise
            self._failed[what] = _reason(error)
            if log.hasHandlers():  # else Python itself would write it to the terminal, with its traceback
                log.warning("%s failed: %s", what, self._failed[what], exc_info=True)
        else:
            self._failed.pop(what, None)

    def lines(self) -> list[str]:
        """Return a line for each failed view, and one with the command that makes them again; none if none failed."""
        lines = [f"{what} failed: {reason}" for what, reason in self.failed.items()]
        if lines and self._again:
            lines.append(f"no result is lost; {self._again} draws and tracks it again")
        return lines

    def keep(self) -> None:
        """Write the failures to the JSON file, for later commands."""
        if self._kept is None:
            return
        document = {"version": 1, "failed": self.failed}
        try:
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            self._kept.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            log.warning("%s cannot be written: %s", self._kept, error)

    def recall(self) -> bool:
        """Read the failures that :meth:`keep` wrote. Return whether there are any."""
        try:
            document = json.loads(self._kept.read_text(encoding="utf-8")) if self._kept is not None else {}
            self._failed = {str(what): printable(reason, _REASON_LENGTH) for what, reason in document["failed"].items()}
        except (OSError, ValueError, LookupError, AttributeError, TypeError):
            pass  # the run did not reach its end, or an older fedbench wrote no such file
        return bool(self._failed)

    def tell(self, say: Callable[[str], None]) -> None:
        """Call ``say`` with each of :meth:`lines`."""
        for line in self.lines():
            say(line)


def _is_control(error: Exception) -> bool:
    prefect = sys.modules.get("prefect.exceptions")  # unless it is imported, none of them can have been raised
    return prefect is not None and isinstance(error, tuple(getattr(prefect, name) for name in _CONTROL))


def _reason(error: Exception) -> str:
    """Return the error on one line, with its type unless its message is meant for users."""
    text = str(error)
    kind = "" if isinstance(error, InfraError) and text else type(error).__name__
    return printable(": ".join(part for part in (kind, text) if part), _REASON_LENGTH)
