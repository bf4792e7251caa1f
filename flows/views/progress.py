"""The events of a run's progress, and the run's state by them. :mod:`flows.views.terminal` shows them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from threading import RLock
from typing import Any

from infra.views import Views
from tasks.plain_text import plain
from tasks.spec.records import RoundRecord


class Progress:
    """The state of a run, kept up to date by its events, in order. Subclasses show it.

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
            self.round = number  # phases outside rounds name it: waking clients up, fine-tuning
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
        """``text`` is the client's result in words: ``loss 3.21, 344 images, 12.3 s``."""
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
        """Show a line that stays on the screen."""
        with self._lock:
            self._say(text, "")

    def warning(self, text: str) -> None:
        """Show a warning that the user must know of, although the run goes on or has ended well."""
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


class SafeReporter:
    """A reporter that hands each event to ``progress``. A failure, as on a closed terminal, is noted in ``views``."""

    def __init__(self, progress: Progress, views: Views) -> None:
        self._views = views
        self._shown: tuple[tuple[str, Progress], ...] = (("the progress on the terminal", progress),)

    def also_to(self, what: str, progress: Progress) -> None:
        """Hand all events from now on to ``progress`` too. ``views`` calls it ``what``."""
        self._shown += ((what, progress),)

    def __getattr__(self, event: str) -> Callable[..., None]:
        reports = [(what, getattr(progress, event)) for what, progress in self._shown]

        def report_safely(*arguments: Any) -> None:
            for what, report in reports:
                with self._views.showing(what):
                    report(*arguments)

        return report_safely


def clock(seconds: float) -> str:
    """Return ``1:02:03`` for 3723.4 seconds."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
