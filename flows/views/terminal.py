"""Progress of a run: a live display on a terminal, plain lines without one, nothing with ``-q``.

The federation's flow reports events to a :class:`~flows.views.progress.Progress`; each subclass shows them in its way,
and :func:`make_progress` picks it.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from flows.views.live import LiveProgress
from flows.views.progress import Progress, clock
from flows.views.tables import megabytes, number_of, own_line
from tasks.plain_text import REASON_LIMIT, plain, plain_lines
from tasks.spec.records import RoundRecord
from tasks.spec.training import PART_NAMES

EVALUATION = "stop_and_eval"


class QuietProgress(Progress):
    """``-q``: no progress; the command line prints the result alone. Warnings go to standard error."""

    def warning(self, text: str) -> None:
        print(f"warning: {plain(text, REASON_LIMIT)}", file=sys.stderr)


class LineProgress(Progress):
    """A plain line for each event, flushed, with the elapsed time: for logs, pipes and CI."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def _say(self, text: str, style: str) -> None:
        for line in plain_lines(text).splitlines():
            self._console.print(Text(f"[{clock(self.elapsed)}] {line}", style), soft_wrap=True)
        self._console.file.flush()

    def _show_federation(self) -> None:
        self._say(f"federation {self.name}: {self.summary}; up to {self.max_rounds} rounds", "bold")

    def _show_round(self) -> None:
        self._say(f"round {self.round} of {self.max_rounds}", "bold")

    def _show_phase(self) -> None:
        noun = "evaluation" if self.phase == EVALUATION else "client"
        clients = f": {_count(self.total, noun)}" if self.total else ""
        self._say(f"{self._at(self.phase or '')} starts{clients}", "")

    def _show_client(self, phase: str, client: str, text: str) -> None:
        tail = f": {text}" if text else ""
        who = f"client{'s' if ',' in client else ''} {client}"
        if phase == EVALUATION:  # one for each test set, which several clients may have in common
            who = f"evaluation for {who}"
        self._say(f"{self._at(phase)}: {who} done ({len(self.done)} of {self.total}){tail}", "")

    def _show_phase_end(self, phase: str, seconds: float) -> None:
        self._say(f"{self._at(phase)} finished in {seconds:.1f} s", "")

    def _show_commit(self, record: RoundRecord) -> None:
        self._say(
            f"round {record.round} of {self.max_rounds} committed: train loss {number_of(record.metrics.train_loss)}, "
            f"{_figures(record)}, {megabytes(record.bytes_up)} MB up, "
            f"{megabytes(record.bytes_down)} MB down, {sum(record.seconds.values()):.1f} s",
            "bold",
        )


class LogProgress(LineProgress):
    """The same lines as log records, which Prefect shows on the page of a run that it started."""

    def __init__(self, logger: logging.Logger | logging.LoggerAdapter[Any]) -> None:
        super().__init__(Console(quiet=True))
        self._logger = logger

    def _say(self, text: str, style: str) -> None:
        for line in plain_lines(text).splitlines():
            self._logger.log(logging.WARNING if style in ("red", "yellow") else logging.INFO, "%s", line)


def _figures(record: RoundRecord) -> str:
    """Return the losses, mAP and recall of a round, of each part of the data that it scored."""
    texts = []
    for part in record.scored_on or ("test",):
        metrics, name = record.figures_on(part), "" if part == "test" else f"{PART_NAMES[part]} "
        texts.append(
            f"{PART_NAMES[part]} loss {number_of(metrics.loss)}, {name}map50_voc10 {number_of(metrics.map50_voc10)}, "
            f"{name}recall {number_of(metrics.recall)}"
        )
        own = record.metrics.on(part).personal
        if own is not None:
            texts.append(f"own models: {name}{own_line(own, record.decision.best_metric)}")
    return ", ".join(texts)


def make_progress(console: Console, quiet: bool) -> Progress:
    """Return a quiet progress for ``-q``, a live one on a terminal, otherwise plain lines."""
    if quiet:
        return QuietProgress()
    # With FORCE_COLOR, rich takes a pipe for a terminal; redrawing needs a real one.
    if console.is_interactive and console.file.isatty():
        return LiveProgress(console)
    return LineProgress(console)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
