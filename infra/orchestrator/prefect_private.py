"""The private parts of Prefect's runner that fedbench uses, read against Prefect 3.9.1.

Prefect's own process worker uses them to watch a run's process, to cancel it with its hooks, and to report its crash.
They make a forked child a process like any other for Prefect. Prefect has no public part that supervises a process
which other code has started.

Two other files use private parts: :mod:`infra.orchestrator.stored_results` and
:mod:`infra.servers.prefect_server_private`. A test holds that no other file does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from types import TracebackType
from typing import Any, Protocol
from uuid import UUID

import anyio
import anyio.abc
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_flow_run
from prefect.states import Cancelling, Crashed, State

from infra.orchestrator.versions import require_tested

require_tested()

# Imported after the check, because other versions may not have them.
import prefect._internal.metrics  # noqa: E402 (every run's engine imports it; so the warm process imports it once)
import prefect.flow_engine  # noqa: E402 (its handler of SIGTERM)
from prefect.runner._flow_run_executor import FlowRunExecutorContext  # noqa: E402 (submits, watches and reports a run)
from prefect.runner._hook_runner import HookRunner  # noqa: E402 (runs a flow's hooks outside its process)
from prefect.runner._process_manager import ProcessHandle  # noqa: E402 (the type of process that the executor accepts)

log = logging.getLogger(__name__)

CANCEL_ATTEMPTS = 6
# Seconds after which Prefect kills a process by force; a longer grace would have no effect.
LONGEST_GRACE = 30


@contextlib.contextmanager
def own_sigterm() -> Iterator[None]:
    """Keep this process's handler of SIGTERM while flows run in the block. Use it where no runner of Prefect's waits.

    Prefect's own handler raises an exception that asyncio only logs if it comes within a callback of the event loop.
    The signal is lost then.
    """
    engine: Any = prefect.flow_engine
    captured = engine.capture_sigterm
    engine.capture_sigterm = contextlib.nullcontext
    try:
        yield
    finally:
        engine.capture_sigterm = captured


class RunProcess(Protocol):
    """What Prefect's supervision needs of a run's process; :class:`infra.worker.warm_process.Child` implements it."""

    pid: int
    returncode: int | None

    async def wait(self) -> int: ...

    def terminate(self, grace: float) -> None: ...

    def kill(self) -> None: ...


class _Scope:
    """The object by which Prefect's process manager signals the process and finds out whether it is alive."""

    wait_after_graceful_kill = True

    def __init__(self, process: RunProcess, grace: float) -> None:
        self._process = process
        self._grace = grace

    def is_alive(self, pid: int) -> bool:
        return self._process.returncode is None

    def graceful_kill(self, pid: int) -> None:
        self._process.terminate(self._grace)

    def hard_kill(self, pid: int) -> None:
        self._process.kill()

    def close(self) -> None:
        pass


class _Starter:
    """The object by which Prefect's executor starts a run's process and waits until it has ended."""

    def __init__(
        self, variables: dict[str, str], start: Callable[[dict[str, str]], Awaitable[RunProcess]], grace: float
    ) -> None:
        self._variables = variables
        self._start = start
        self._grace = grace

    async def start(
        self, flow_run: FlowRun, task_status: anyio.abc.TaskStatus[ProcessHandle] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        process = await self._start(self._variables)
        try:
            task_status.started(ProcessHandle(process, termination_scope=_Scope(process, self._grace)))  # type: ignore[arg-type]
            await process.wait()
        except BaseException:
            process.kill()
            with anyio.CancelScope(shield=True):
                await process.wait()
            raise


class _Hooks:
    """The object by which Prefect's executor runs hooks: in a child, because the worker must not import flows."""

    def __init__(self, run: Callable[[FlowRun, str, str], Awaitable[None]]) -> None:
        self._run = run

    async def run_cancellation_hooks(self, flow_run: FlowRun, state: State[Any]) -> None:
        await self._run(flow_run, "cancellation", state.message or "")

    async def run_crashed_hooks(self, flow_run: FlowRun, state: State[Any]) -> None:
        if state.is_crashed():
            await self._run(flow_run, "crashed", state.message or "")


class Supervision:
    """What watches, cancels and reports the runs of one worker. All runs share its connections.

    run_hooks: runs a flow's hooks in a child. It takes the run, the kind (``"cancellation"`` or ``"crashed"``) and the
        state's message.
    """

    def __init__(self, run_hooks: Callable[[FlowRun, str, str], Awaitable[None]]) -> None:
        self._context = FlowRunExecutorContext()
        self._hooks = _Hooks(run_hooks)

    async def __aenter__(self) -> Supervision:
        await self._context.__aenter__()
        # With the default callback, a failure of the API while a run is cancelled would end this context, and so the
        # worker. The context has no parameter for another callback.
        self._context._observer.on_cancelling = self._cancel_soon
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._context.__aexit__(kind, error, trace)

    async def execute(
        self,
        flow_run: FlowRun,
        start: Callable[[dict[str, str]], Awaitable[RunProcess]],
        started: Callable[[int], None],
        grace: float,
    ) -> int | None:
        """Run ``flow_run`` in a process of its own, and report to Prefect how it ended.

        start: takes variables for the process, and returns the started process. started: called with the process id.
        grace: seconds between SIGTERM and SIGKILL, at most ``LONGEST_GRACE``.
        Returns the exit code; 0 if the run has reported its end itself; None if its process was not started.
        """
        variables = {
            "PREFECT__FLOW_RUN_ID": str(flow_run.id),
            "PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS": "false",  # the worker runs them, even after a kill
        }
        try:
            port, token = self._context.control_channel.register(flow_run.id)
            variables |= {"PREFECT__CONTROL_PORT": str(port), "PREFECT__CONTROL_TOKEN": token}
        except RuntimeError:  # no port could be bound: the run can be killed, but does not learn why
            pass

        async def begin(given: dict[str, str]) -> RunProcess:
            process = await start(given)
            started(process.pid)
            return process

        executor = self._context.create_executor(
            flow_run, _Starter(variables, begin, grace), propose_submitting=False, hook_runner=self._hooks
        )
        result = await executor.submit()
        return None if result is None else result.status_code

    # These use the context's own task group and manager, which know the run's process and its hooks.

    def _cancel_soon(self, flow_run_id: UUID) -> None:
        self._context._cancellation_task_group.start_soon(self._cancel, flow_run_id)

    async def _cancel(self, flow_run_id: UUID) -> None:
        for attempt in range(CANCEL_ATTEMPTS):
            try:
                await self._context._cancellation_manager.cancel_by_id(flow_run_id)
            except ObjectNotFound:
                return
            except Exception as error:
                log.warning("flow run %s: cancelling failed, trying again: %s", flow_run_id, error)
                await asyncio.sleep(2**attempt)
            else:
                return


def run_hooks(kind: str, message: str) -> None:
    """Run a flow's hooks of ``kind`` in this process, a child that has the run's environment and folder."""
    flow_run_id = UUID(os.environ["PREFECT__FLOW_RUN_ID"])

    async def load_and_run() -> None:
        async with get_client() as client:
            flow_run = await client.read_flow_run(flow_run_id)
        runner = HookRunner(resolve_flow=load_flow_from_flow_run)
        if kind == "crashed":
            await runner.run_crashed_hooks(flow_run, Crashed(message=message))
        else:
            await runner.run_cancellation_hooks(flow_run, Cancelling(message=message))

    asyncio.run(load_and_run())


def log_internals_by_root() -> None:
    """Pass Prefect's internal messages to the root logger's handlers.

    Importing Prefect has them written to the terminal, whatever its settings are. That breaks a live display.
    """
    internal = logging.getLogger("prefect._internal")
    internal.handlers, internal.propagate = [], True
