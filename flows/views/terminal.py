"""Progress of a run: a live display on a terminal, plain lines without one, nothing with ``-q``.

The federation's flow reports events to a :class:`Progress`; each subclass shows them in its way, and
:func:`make_progress` picks it.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from threading import RLock
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Column, Table
from rich.text import Text

from flows.views.tables import megabytes, number_of, round_table
from infra.views import Views
from tasks.plain_text import REASON_LIMIT, plain, plain_lines
from tasks.spec.records import RoundRecord

_NAMED_CLIENTS = 8  # up to this many clients of a phase are shown by name
_BAR_WIDTH = 30
_OTHER_LINES = 11  # of the live display, beside the table's rows


class Progress:
    """Takes the events of a run, in order, and keeps where it stands; shows nothing itself.

    ``round_started`` comes before a round's phases, ``round_committed`` after its marker is in the store.
    Events may come from several threads.
    """

    def __init__(self) -> None:
        self._lock = RLock()
        self._began = time.monotonic()
        self.name = ""
        self.summary = ""
        self.max_rounds = 0
        self.round = 0
        self.phase: str | None = None
        self.phase_began = self._began
        self.total = 0
        self.done: list[str] = []
        self.failed: list[str] = []
        self.finished_phases: list[tuple[str, float]] = []
        self.records: list[RoundRecord] = []

    @property
    def elapsed(self) -> float:
        """Seconds since the federation was started in this process."""
        return time.monotonic() - self._began

    def federation_started(self, name: str, spec_summary: str, max_rounds: int) -> None:
        """``spec_summary`` is one line: data, detector, clients, local epochs."""
        with self._lock:
            self._began = time.monotonic()
            self.name, self.summary, self.max_rounds = name, spec_summary, max_rounds
            self._show_federation()

    def resumed(self, number: int, records: Sequence[RoundRecord] = ()) -> None:
        """The run goes on after the committed round ``number``; ``records`` are those so far."""
        with self._lock:
            self.records.extend(records)
            self._say(f"resumed: round {number} is committed, going on from there", "cyan")

    def round_started(self, number: int) -> None:
        with self._lock:
            self.round, self.phase = number, None
            self.finished_phases = []
            self._show_round()

    def phase_started(self, phase: str, total: int) -> None:
        """``total`` is the number of clients (or evaluations) that the phase waits for; 0: no clients."""
        with self._lock:
            self.phase, self.total, self.phase_began = phase, total, time.monotonic()
            self.done, self.failed = [], []
            self._show_phase()

    def client_done(self, phase: str, client: str, text: str) -> None:
        """``text`` says what came of it: ``loss 3.21, 344 images, 12.3 s``."""
        with self._lock:
            self.done.append(client)
            self._show_client(phase, client, text)

    def client_failed(self, phase: str, client: str, kind: str, reason: str) -> None:
        """The phase dropped the client; ``kind`` is that of ``ClientFailure``."""
        with self._lock:
            self.failed.append(client)
            self._say(f"{self._at(phase)}: client {client} dropped ({kind}): {plain(reason)}", "red")

    def client_retried(self, phase: str, client: str, attempt: int, reason: str) -> None:
        """A lost turn runs again; ``attempt`` counts the repetitions from 1."""
        with self._lock:
            self._say(f"{self._at(phase)}: client {client} lost, retry {attempt}: {plain(reason)}", "yellow")

    def phase_finished(self, phase: str, seconds: float) -> None:
        with self._lock:
            self.finished_phases.append((phase, seconds))
            self.phase = None
            self._show_phase_end(phase, seconds)

    def round_committed(self, record: RoundRecord) -> None:
        with self._lock:
            self.records[:] = [*(known for known in self.records if known.round < record.round), record]
            self._show_commit(record)

    def message(self, text: str) -> None:
        """A line that stays on the screen."""
        with self._lock:
            self._say(text, "")

    def warning(self, text: str) -> None:
        """What must be known although the run goes on, or has ended well."""
        with self._lock:
            self._say(f"warning: {text}", "yellow")

    def close(self) -> None:
        """Give the terminal back; may be called twice."""

    def _at(self, phase: str) -> str:
        return f"round {self.round} {phase}"

    def _say(self, text: str, style: str) -> None:
        pass

    def _show_federation(self) -> None:
        pass

    def _show_round(self) -> None:
        pass

    def _show_phase(self) -> None:
        pass

    def _show_client(self, phase: str, client: str, text: str) -> None:
        pass

    def _show_phase_end(self, phase: str, seconds: float) -> None:
        pass

    def _show_commit(self, record: RoundRecord) -> None:
        pass


class QuietProgress(Progress):
    """``-q``: no progress; the command line prints the result alone. Warnings go to standard error."""

    def warning(self, text: str) -> None:
        print(f"warning: {plain(text, REASON_LIMIT)}", file=sys.stderr)


class LineProgress(Progress):
    """One plain, flushed line an event, with the elapsed time: for logs, pipes and CI."""

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
        clients = f": {_count(self.total, 'client')}" if self.total else ""
        self._say(f"{self._at(self.phase or '')} starts{clients}", "")

    def _show_client(self, phase: str, client: str, text: str) -> None:
        tail = f": {text}" if text else ""
        self._say(f"{self._at(phase)}: client {client} done ({len(self.done)} of {self.total}){tail}", "")

    def _show_phase_end(self, phase: str, seconds: float) -> None:
        self._say(f"{self._at(phase)} finished in {seconds:.1f} s", "")

    def _show_commit(self, record: RoundRecord) -> None:
        metrics = record.metrics
        self._say(
            f"round {record.round} of {self.max_rounds} committed: train loss {number_of(metrics.train_loss)}, "
            f"test loss {number_of(metrics.loss)}, map50_voc10 {number_of(metrics.map50_voc10)}, "
            f"recall {number_of(metrics.recall)}, {megabytes(record.bytes_up)} MB up, "
            f"{megabytes(record.bytes_down)} MB down, {sum(record.seconds.values()):.1f} s",
            "bold",
        )


class LogProgress(LineProgress):
    """The lines as a logger's: a run that Prefect started shows them on its page."""

    def __init__(self, logger: logging.Logger | logging.LoggerAdapter[Any]) -> None:
        super().__init__(Console(quiet=True))
        self._logger = logger

    def _say(self, text: str, style: str) -> None:
        for line in plain_lines(text).splitlines():
            self._logger.log(logging.WARNING if style in ("red", "yellow") else logging.INFO, "%s", line)


class LiveProgress(Progress):
    """A display that is drawn again in place; what is worth keeping is printed above it."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._spinner = Spinner("dots", style="cyan")
        # Transient: the command line prints the whole table once the run has ended.
        self._live = Live(self, console=console, refresh_per_second=4, transient=True)

    def close(self) -> None:
        self._live.stop()

    def _say(self, text: str, style: str) -> None:
        self._console.print(Text(plain_lines(text), style))

    def _show_federation(self) -> None:
        self._live.start()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # Called by the thread that refreshes, which holds rich's lock, while an event that prints waits for
        # that lock: taking self._lock here could block both for ever. What is read is appended or replaced.
        parts: list[RenderableType] = [Text(self.summary, "dim", overflow="ellipsis", no_wrap=True)]
        parts += [self._round_line(), self._phases_line(), self._current_phase()]
        if self.records:
            # At least the last round; never more than the screen holds, or rich cuts the bottom off.
            rows = max(1, console.size.height - _OTHER_LINES)
            parts += [Text(), round_table(self.records[-rows:])]
        yield Panel(
            Group(*parts),
            title=Text.assemble(("fedbench ", "bold"), (self.name, "bold cyan")),
            title_align="left",
            subtitle=Text(f"{clock(self.elapsed)} elapsed", "dim"),
            subtitle_align="right",
            border_style="dim",
            width=min(options.max_width, 100),
        )

    def _round_line(self) -> RenderableType:
        committed = self.records[-1].round if self.records else 0
        best = self.records[-1].decision if self.records else None
        score = ""
        if best is not None and best.best is not None:
            score = f"best {best.best_metric} {best.best:.3f} in round {best.best_round}"
        line = Table.grid(Column(no_wrap=True), Column(width=_BAR_WIDTH), Column(no_wrap=True), padding=(0, 1))
        line.add_row(
            Text(f"round {self.round}/{self.max_rounds}", "bold"),
            ProgressBar(total=max(1, self.max_rounds), completed=committed, width=_BAR_WIDTH),
            Text(score, overflow="ellipsis"),
        )
        return line

    def _phases_line(self) -> RenderableType:
        line = Text()
        for phase, seconds in self.finished_phases:
            line.append("✓ ", "green").append(f"{phase} ").append(f"{seconds:.1f}s  ", "dim")
        return line

    def _current_phase(self) -> RenderableType:
        phase, total, done, failed = self.phase, self.total, self.done, self.failed
        if phase is None:
            return Text("  …", "dim")
        text = Text.assemble((phase, "bold"), "  ", (clock(time.monotonic() - self.phase_began), "dim"))
        if total:
            text.append(f"  {len(done)}/{total}")
        if total <= _NAMED_CLIENTS:
            for mark, style, clients in (("✓", "green", done), ("✗", "red", failed)):
                for client in clients:
                    text.append(f"  {mark} ", style).append(client)
        elif failed:
            text.append(f"  {len(failed)} dropped", "red")
        line = Table.grid(Column(width=1), Column(no_wrap=True, overflow="ellipsis"), padding=(0, 1))
        line.add_row(self._spinner, text)
        return line


class SafeReporter:
    """Hands each event to ``progress``; if that fails, as on a terminal that is gone, it is noted in ``views``."""

    def __init__(self, progress: Progress, views: Views) -> None:
        self._progress, self._views = progress, views

    def __getattr__(self, event: str) -> Callable[..., None]:
        tell = getattr(self._progress, event)

        def told(*arguments: Any) -> None:
            with self._views.showing("the progress on the terminal"):
                tell(*arguments)

        return told


def make_progress(console: Console, quiet: bool) -> Progress:
    """Quiet with ``-q``, live on a terminal, else plain lines."""
    if quiet:
        return QuietProgress()
    # FORCE_COLOR makes rich call a pipe a terminal; redrawing needs a real one.
    if console.is_interactive and console.file.isatty():
        return LiveProgress(console)
    return LineProgress(console)


def clock(seconds: float) -> str:
    """``3723.4`` as ``1:02:03``."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
