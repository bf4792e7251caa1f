"""The handles of a running federation: its store, its slots, its display.

Flows and tasks pass small records to each other through Prefect. Handles cannot be passed that way, so the federation's
process sets them once, in a context variable.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from infra.settings import Settings
from infra.store.layout import FederationLayout
from infra.store.lease import StoreLease
from infra.store.objects import ObjectStore
from infra.store.weights import WeightStore
from infra.turns.local import TurnRunner
from infra.views import Views
from tasks.spec.plans import ClientFailure, ClientInfo
from tasks.spec.records import FineTunedRecord, RoundRecord
from tasks.spec.turns import AnyRequest, TurnReply


class Reporter(Protocol):
    """Reports a run's progress; :class:`flows.views.progress.Progress` is one."""

    def round_started(self, number: int) -> None: ...

    def phase_started(self, phase: str, total: int) -> None: ...

    def client_done(self, phase: str, client: str, text: str) -> None: ...

    def client_failed(self, phase: str, client: str, kind: str, reason: str) -> None: ...

    def client_retried(self, phase: str, client: str, attempt: int, reason: str) -> None: ...

    def phase_finished(self, phase: str, seconds: float) -> None: ...

    def message(self, text: str) -> None: ...

    def warning(self, text: str) -> None: ...


@dataclass(frozen=True)
class Leavings:
    """The products of a finished run: plots (PNG) by file name, the registered model, and its page in MLflow.

    drawn: False if no plot was drawn because the settings say so.
    """

    plots: Mapping[str, bytes]
    model: str | None
    page: str | None
    drawn: bool = True


@dataclass
class Handles:
    """Handles of one federation.

    take_turn: the function that a slot runs for a turn's request.
    committed: called with each round's record after its commit, to log and display it.
    started: called with the id of the federation's flow run when it begins.
    finished: called after the last round; makes the run's products and returns them.
    went_back: called with the records that still count when a committed round is done again.
    lease: held by this process while it runs the federation; None if no other process can run it, as in tests.
    history: records of the committed rounds, from 0; too large to be a flow's parameter (512 KiB).
    views: runs all work that only presents the federation.
    tuned: the record of fine-tuning, once it is done after the last round.
    ready, not_ready: the result of wake_up; with 1,700 clients too large for a parameter as well.
    """

    settings: Settings
    objects: ObjectStore
    weights: WeightStore
    layout: FederationLayout
    slots: TurnRunner
    take_turn: Callable[[AnyRequest], TurnReply]
    reporter: Reporter
    committed: Callable[[RoundRecord], None]
    started: Callable[[str], None]
    finished: Callable[[Handles], Awaitable[Leavings]]
    went_back: Callable[[Sequence[RoundRecord]], None] = lambda records: None
    lease: StoreLease | None = None
    history: list[RoundRecord] = field(default_factory=list)
    tuned: FineTunedRecord | None = None
    ready: list[ClientInfo] = field(default_factory=list)
    not_ready: list[ClientFailure] = field(default_factory=list)
    views: Views = field(default_factory=Views)


_HANDLES: ContextVar[Handles] = ContextVar("fedbench_handles")


def set_handles(handles: Handles) -> None:
    """Make ``handles`` the current handles of this context and of all contexts that it starts."""
    _HANDLES.set(handles)


def has_handles() -> bool:
    """Return whether a federation's process has set handles in this context."""
    return _HANDLES.get(None) is not None


def current_handles() -> Handles:
    """Return the handles of this context.

    Raises:
        LookupError: no federation runs in this context.
    """
    try:
        return _HANDLES.get()
    except LookupError:
        raise LookupError("no handles: flows are run by `fedbench run` or a worker, which set them") from None
