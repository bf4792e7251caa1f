"""Progress of a run on a terminal, as a display that is redrawn in place."""

from __future__ import annotations

import time

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Column, Table
from rich.text import Text

from flows.views.progress import Progress, clock
from flows.views.tables import round_table
from tasks.plain_text import plain_lines

_NAMED_CLIENTS = 8  # up to this many clients of a phase are shown by name
_BAR_WIDTH = 30
_OTHER_LINES = 11  # of the live display, beside the table's rows


class LiveProgress(Progress):
    """A display that is redrawn in place. Lines that should stay are printed above it."""

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
        # The refreshing thread calls this and holds rich's lock. An event that prints holds self._lock and waits for
        # rich's lock. So taking self._lock here could block both for ever. It is not needed: other threads only
        # append to the fields that are read here, or replace them.
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
            score = f"best {best.best_name} {best.best:.3f} in round {best.best_round}"
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
