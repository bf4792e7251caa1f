"""What only presents or tracks a federation: plots, MLflow, Prefect's pages. A failure there is a warning.

The store's committed rounds are the result of a federation. Whoever draws, logs or registers them does it within
:meth:`Views.showing`, so that nothing of it can fail the federation; what failed is printed once and can be done again.
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

# Without the store nothing goes on, and with it the federation does; who lost the federation must let go of it.
_NOT_OURS = (StoreUnavailable, StoreRefused, RunLocked, HomeInUse)
# Prefect's exceptions that say how a run ends; its other signals are no Exception at all.
_CONTROL = ("CancelledRun", "PausedRun")
_REASON_LENGTH = 600


class Views:
    """The views of one federation or suite, and those that failed and have not been made since.

    Safe to use from several threads.
    """

    def __init__(self, again: str = "", kept: Path | None = None) -> None:
        """again: the command that does it all again. kept: a JSON file for :meth:`keep`."""
        self._again, self._kept = again, kept
        self._failed: dict[str, str] = {}

    @property
    def failed(self) -> dict[str, str]:
        """The reason of each view that failed, by what it is, in the order in which they failed."""
        return dict(self._failed)

    @contextmanager
    def showing(self, what: str) -> Iterator[None]:
        """Make the view ``what`` inside. If that raises an exception, log it, and go on after the block.

        A later success with the same ``what`` takes the failure back.

        Raises:
            StoreUnavailable, StoreRefused, RunLocked, HomeInUse: the federation cannot go on, whoever found out.
            KeyboardInterrupt and other exceptions that are no errors: Prefect's signals, cancellation, exit.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, _NOT_OURS) or _is_control(error):
                raise
            self._failed[what] = _reason(error)
            if log.hasHandlers():  # else Python itself would write it to the terminal, with its traceback
                log.warning("%s failed: %s", what, self._failed[what], exc_info=True)
        else:
            self._failed.pop(what, None)

    def lines(self) -> list[str]:
        """A line for each view that failed, and one that says how to make them again; none if all were made."""
        lines = [f"{what} failed: {reason}" for what, reason in self.failed.items()]
        if lines and self._again:
            lines.append(f"no result is lost; {self._again} draws and tracks it again")
        return lines

    def keep(self) -> None:
        """Write which views failed into the file, for those who come later."""
        if self._kept is None:
            return
        document = {"version": 1, "failed": self.failed}
        try:
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            self._kept.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            log.warning("%s cannot be written: %s", self._kept, error)

    def recall(self) -> bool:
        """Take over the failures that :meth:`keep` wrote; returns whether there are any."""
        try:
            document = json.loads(self._kept.read_text(encoding="utf-8")) if self._kept is not None else {}
            self._failed = {str(what): printable(reason, _REASON_LENGTH) for what, reason in document["failed"].items()}
        except (OSError, ValueError, LookupError, AttributeError, TypeError):
            pass  # a run of before this file was kept, or one that did not come to its end
        return bool(self._failed)

    def tell(self, say: Callable[[str], None]) -> None:
        """Call ``say`` with each of :meth:`lines`."""
        for line in self.lines():
            say(line)


def _is_control(error: Exception) -> bool:
    prefect = sys.modules.get("prefect.exceptions")  # where it is not imported, none can have been raised
    return prefect is not None and isinstance(error, tuple(getattr(prefect, name) for name in _CONTROL))


def _reason(error: Exception) -> str:
    """The error in one line, with its type unless its message is made for users."""
    text = str(error)
    kind = "" if isinstance(error, InfraError) and text else type(error).__name__
    return printable(": ".join(part for part in (kind, text) if part), _REASON_LENGTH)
