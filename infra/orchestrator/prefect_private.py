"""The private parts of Prefect's runner that fedbench uses, read against Prefect 3.9.1.

They are what Prefect's own process worker is made of: how a run's process is watched, cancelled with its hooks, and
reported when it crashes. With them a forked child is for Prefect a process like any other. Prefect has no public part
that supervises a process which somebody else has started.

Two other files use private parts: :mod:`infra.orchestrator.stored_results` and
:mod:`infra.servers.prefect_server_private`. A test holds that no other file does.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
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

# Below the check: with another version these may be gone.
import prefect._internal.metrics  # noqa: E402, F401 (each run's engine imports it: the warm process does it once for all)
from prefect.runner._flow_run_executor import FlowRunExecutorContext  # noqa: E402 (submits, watches and reports a run)
from prefect.runner._hook_runner import HookRunner  # noqa: E402 (runs a flow's hooks outside its process)
from prefect.runner._process_manager import ProcessHandle  # noqa: E402 (the process, as the executor takes it)

log = logging.getLogger(__name__)

CANCEL_ATTEMPTS = 6
# Seconds that Prefect waits before it kills by force; a longer grace of ours would be cut there.
LONGEST_GRACE = 30


class RunProcess(Protocol):
    """A run's process, as far as Prefect's supervision needs it; :class:`infra.worker.warm_process.Child` is one."""

    pid: int
    returncode: int | None

    async def wait(self) -> int: ...

    def terminate(self, grace: float) -> None: ...

    def kill(self) -> None: ...


class _Scope:
    """How Prefect's process manager signals the process, and sees whether it is there."""

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
    """Starts a run's process, and stays until it has ended."""

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
    """Hooks run where flows are imported: in a child, not in the worker."""

    def __init__(self, run: Callable[[FlowRun, str, str], Awaitable[None]]) -> None:
        self._run = run

    async def run_cancellation_hooks(self, flow_run: FlowRun, state: State[Any]) -> None:
        await self._run(flow_run, "cancellation", state.message or "")

    async def run_crashed_hooks(self, flow_run: FlowRun, state: State[Any]) -> None:
        if state.is_crashed():
            await self._run(flow_run, "crashed", state.message or "")


class Supervision:
    """Watches, cancels and reports the runs of one worker. One for all runs: each opens no connections of its own.

    run_hooks: runs a flow's hooks (``"cancellation"`` or ``"crashed"``, the state's message) in a child.
    """

    def __init__(self, run_hooks: Callable[[FlowRun, str, str], Awaitable[None]]) -> None:
        self._context = FlowRunExecutorContext()
        self._hooks = _Hooks(run_hooks)

    async def __aenter__(self) -> Supervision:
        await self._context.__aenter__()
        # By default an API that fails to answer a cancellation would end this context, and so the worker. The context
        # takes no other callback.
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
        """Run ``flow_run`` in the process that ``start`` gives when handed variables for it, and report how it ended.

        started: told the process id. grace: seconds between SIGTERM and SIGKILL, at most ``LONGEST_GRACE``.
        Returns its exit code, 0 also when the run's end is reported otherwise; None when it was not to be started.
        """
        variables = {
            "PREFECT__FLOW_RUN_ID": str(flow_run.id),
            "PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS": "false",  # they are run here, also after a kill
        }
        try:
            port, token = self._context.control_channel.register(flow_run.id)
            variables |= {"PREFECT__CONTROL_PORT": str(port), "PREFECT__CONTROL_TOKEN": token}
        except RuntimeError:  # no port could be bound: the run can be killed, but not told why
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

    # The context's own task group and manager: they know the run's process and its hooks.

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
    """Run a flow's hooks of ``kind`` in this process: a child, whose environment and folder are the run's."""
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
    """Have Prefect's internal messages written by the root logger's handlers.

    When Prefect is imported, it has them written to the terminal whatever its settings say: through a live display.
    """
    internal = logging.getLogger("prefect._internal")
    internal.handlers, internal.propagate = [], True
