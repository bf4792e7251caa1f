"""Ctrl-C and SIGTERM are never lost, whatever the process is doing."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
import weakref
from typing import Any

import prefect.flow_engine
import pytest
from prefect.exceptions import Abort, CancelledRun, CrashedRun, TerminationSignal

from flows.coordinator.interrupts import (
    interrupts_deferred,
    stops_as_interrupt,
    terminate_as_interrupt,
    was_stopped,
)
from infra.orchestrator.prefect_private import own_sigterm
from tasks.errors import FedbenchError

NUMBERS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize(
    ("error", "stopped"),
    [
        (KeyboardInterrupt(), True),
        (asyncio.CancelledError(), True),
        (CancelledRun(), True),
        (TerminationSignal(signal.SIGTERM), True),
        (Abort(), True),
        (CrashedRun(), False),
        (FedbenchError("no quorum"), False),
        (SystemExit(1), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_run_that_somebody_stopped_has_not_failed(error: BaseException, stopped: bool) -> None:
    assert was_stopped(error) is stopped


@pytest.mark.parametrize("error", [TerminationSignal(signal.SIGTERM), CancelledRun(), asyncio.CancelledError()])
def test_a_stop_by_prefect_becomes_an_interrupt_without_its_traceback(error: BaseException) -> None:
    with pytest.raises(KeyboardInterrupt) as caught, stops_as_interrupt():
        raise error
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("error", [FedbenchError("no quorum"), KeyboardInterrupt(), SystemExit(1)])
def test_what_is_no_stop_stays_as_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, stops_as_interrupt():
        raise error
    assert caught.value is error


class Thing:
    pass


@pytest.mark.parametrize("number", NUMBERS)
def test_a_deferred_signal_raises_at_the_next_check(number: signal.Signals) -> None:
    passed = []

    def work() -> None:
        with interrupts_deferred() as interrupts:
            interrupts.check()
            signal.raise_signal(number)
            passed.append("after the signal")
            interrupts.check()
            passed.append("after the check")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert passed == ["after the signal"]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_deferred_signal_raises_at_the_end_of_the_block(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), interrupts_deferred():
        signal.raise_signal(number)


def test_a_signal_within_a_finalizer_is_neither_printed_nor_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", printed.append)

    def work() -> None:
        thing = Thing()
        weakref.finalize(thing, signal.raise_signal, signal.SIGINT)
        with interrupts_deferred():
            del thing

    with pytest.raises(KeyboardInterrupt):
        work()
    assert printed == []


def test_another_error_is_raised_instead_of_a_deferred_signal() -> None:
    def work() -> None:
        with interrupts_deferred():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("a port")

    with pytest.raises(ValueError, match="a port"):
        work()


def test_the_earlier_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in NUMBERS]
    with interrupts_deferred():
        assert [signal.getsignal(number) for number in NUMBERS] != before
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_deferred():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_raised_in_a_finalizer_is_raised_again(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", printed.append)

    def work() -> None:
        thing = Thing()
        weakref.finalize(thing, signal.raise_signal, number)
        with terminate_as_interrupt():
            del thing
            time.sleep(30)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert printed == []
    assert sys.unraisablehook == printed.append


def test_other_errors_of_finalizers_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", printed.append)
    thing = Thing()
    weakref.finalize(thing, int, "x")
    with terminate_as_interrupt():
        del thing
    assert [type(what.exc_value) for what in printed] == [ValueError]


def test_sigterm_raises_keyboard_interrupt() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), terminate_as_interrupt():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_in_a_callback_of_the_event_loop_of_a_flow_is_not_lost() -> None:
    """asyncio raises KeyboardInterrupt there, and only logs the exception of Prefect's handler."""

    async def work() -> None:
        with prefect.flow_engine.capture_sigterm():  # as the engine of every flow does
            asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGTERM)
            await asyncio.sleep(30)

    before = prefect.flow_engine.capture_sigterm
    with pytest.raises(KeyboardInterrupt), terminate_as_interrupt(), own_sigterm():
        asyncio.run(work())
    assert prefect.flow_engine.capture_sigterm is before
