"""Ctrl-C and SIGTERM are never lost, whatever the process is doing."""

from __future__ import annotations

import asyncio
import contextlib
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
    run_until_stopped,
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


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), TerminationSignal(signal.SIGTERM), CancelledRun()])
def test_an_error_raised_while_a_stop_was_handled_is_a_stop(stop: BaseException) -> None:
    """As Prefect's engine does, for a task that was stopped before it had a run."""

    def fail() -> None:
        try:
            raise stop
        finally:
            raise ValueError("Task run is not set")

    with pytest.raises(ValueError, match="not set") as caught:
        fail()
    assert was_stopped(caught.value)


def test_a_time_limit_is_no_stop() -> None:
    async def slow() -> None:
        async with asyncio.timeout(0.001):
            await asyncio.sleep(30)

    with pytest.raises(TimeoutError) as caught:
        asyncio.run(slow())
    assert not was_stopped(caught.value)


async def failing(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("error", [TerminationSignal(signal.SIGTERM), CancelledRun(), asyncio.CancelledError()])
def test_a_stop_by_prefect_becomes_an_interrupt_without_its_traceback(error: BaseException) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        run_until_stopped(failing(error))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("error", [FedbenchError("no quorum"), KeyboardInterrupt(), SystemExit(1)])
def test_what_is_no_stop_stays_as_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        run_until_stopped(failing(error))
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
    """asyncio only logs the exception of Prefect's handler there."""

    async def work() -> None:
        with prefect.flow_engine.capture_sigterm():  # as the engine of every flow does
            asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGTERM)
            await asyncio.sleep(30)

    before = prefect.flow_engine.capture_sigterm
    with pytest.raises(KeyboardInterrupt), terminate_as_interrupt(), own_sigterm():
        run_until_stopped(work())
    assert prefect.flow_engine.capture_sigterm is before


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_cancels_the_work(number: signal.Signals) -> None:
    ended = []

    async def work() -> None:
        asyncio.get_running_loop().call_later(0.01, signal.raise_signal, number)
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # it may still say goodbye
            ended.append("cleanly")
            raise

    before = [signal.getsignal(each) for each in NUMBERS]
    with pytest.raises(KeyboardInterrupt):
        run_until_stopped(work())
    assert ended == ["cleanly"]
    assert [signal.getsignal(each) for each in NUMBERS] == before


@pytest.mark.parametrize("number", NUMBERS)
def test_whatever_the_work_raises_after_a_signal_is_an_interrupt(number: signal.Signals) -> None:
    async def work() -> None:
        signal.raise_signal(number)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(30)
        raise ValueError("Task run is not set")

    with pytest.raises(KeyboardInterrupt) as caught:
        run_until_stopped(work())
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("number", NUMBERS)
def test_the_second_signal_ends_work_that_awaits_nothing(number: signal.Signals) -> None:
    async def work() -> None:
        signal.raise_signal(number)
        signal.raise_signal(number)
        raise AssertionError("the second signal did not raise")

    with pytest.raises(KeyboardInterrupt):
        run_until_stopped(work())


def test_an_error_without_a_signal_stays_as_it_is() -> None:
    async def work() -> None:
        raise ValueError("a port")

    with pytest.raises(ValueError, match="a port"):
        run_until_stopped(work())


def test_sigterm_cancels_the_work_of_a_process_that_ignores_ctrl_c() -> None:
    """A shell's background job ignores it."""

    async def work() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(30)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_until_stopped(work())
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
