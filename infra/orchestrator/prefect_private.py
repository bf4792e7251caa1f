"""All that fedbench uses of Prefect's private parts.

For the worker they are what Prefect's own process worker is made of: how a run's process is watched, cancelled with its
hooks, and reported when it crashes. With them a forked child is for Prefect a process like any other.

For every process that runs flows they are the places where Prefect loads stored results: see
:func:`refuse_stored_results`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import wraps
from importlib.metadata import version
from types import TracebackType
from typing import Any, Protocol
from uuid import UUID

import anyio
import anyio.abc
import prefect.flow_engine
import prefect.results
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_flow_run
from prefect.states import Cancelling, Crashed, Failed, State

from infra.errors import InfraError, StoredResultRefused
from infra.orchestrator.versions import TESTED
from infra.plain_text import printable


def require_tested(installed: str) -> None:
    """
    Raises:
        InfraError: ``installed`` is not a version of Prefect that this file was tested with.
    """
    if installed not in TESTED:
        raise InfraError(
            f"prefect: fedbench uses private parts of Prefect, tested with {TESTED}, found {installed}; install one of "
            "those"
        )


require_tested(version("prefect"))

# Below the check: with another version these may be gone.
from prefect._internal import result_records  # noqa: E402
from prefect.runner._flow_run_executor import FlowRunExecutorContext  # noqa: E402
from prefect.runner._hook_runner import HookRunner  # noqa: E402
from prefect.runner._process_manager import ProcessHandle  # noqa: E402

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
        # As it comes, an API that fails to answer a cancellation would end this context, and so the worker.
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


def run_hooks(flow_run_id: str, kind: str, message: str) -> None:
    """Run a flow's hooks of ``kind`` in this process: a child, whose environment and folder are the run's."""

    async def load_and_run() -> None:
        async with get_client() as client:
            flow_run = await client.read_flow_run(UUID(flow_run_id))
        runner = HookRunner(resolve_flow=load_flow_from_flow_run)
        if kind == "crashed":
            await runner.run_crashed_hooks(flow_run, Crashed(message=message))
        else:
            await runner.run_cancellation_hooks(flow_run, Cancelling(message=message))

    asyncio.run(load_and_run())


# Stored results. The record in storage names the serializer that reads it: cloudpickle, or JSON whose decoder imports
# classes by name. Whoever may write to Prefect's server can set a run to Completed with a record of their own, so a
# process that loads results can be made to run any code.

_REFUSED = (
    "Prefect was to load a stored result: refused, because loading one can run any code, and fedbench's runs store none"
)
# Where something was replaced, its name there, and what was there before.
_replaced: list[tuple[Any, str, Any]] = []


def refuse_stored_results() -> None:
    """Have this process load no result that Prefect stored, import nothing that a stored record names, and let no flow
    run begin whose state has one. Safe to call again.

    Results that a flow or task returns in this process are not concerned: Prefect keeps them in memory.
    """
    if _replaced:
        return
    results, engine = prefect.results, prefect.flow_engine
    for where, name, instead in (
        # All that reads a record passes one of these two.
        (results.ResultRecord, "deserialize", classmethod(_refuse)),
        (results.ResultRecord, "deserialize_from_result_and_metadata", classmethod(_refuse)),
        # Before them, a block of the server says where the record is, and the record is fetched from there.
        (results.ResultStore, "_from_metadata", classmethod(_refuse_later)),
        (results.ResultStore, "_read", _refuse),
        (results.ResultStore, "_aread", _refuse_later),
        # A task looks for a cached result: it finds none, and runs.
        (results.ResultStore, "_exists", lambda store, key: False),
        (results.ResultStore, "_aexists", _false_later),
        # To parse a state imports the pickle library that its record names. Without a known type it is kept as data.
        (result_records, "lookup_type", _no_serializer),
        # A storage block that the server sets for all flows would have their results stored, and looked for, there.
        (results, "_read_server_default_result_storage_block_id", lambda: None),
        (results, "_aread_server_default_result_storage_block_id", _none_later),
        (engine.FlowRunEngine, "begin_run", _checked(engine.FlowRunEngine.begin_run)),
        (engine.AsyncFlowRunEngine, "begin_run", _checked_later(engine.AsyncFlowRunEngine.begin_run)),
    ):
        _replaced.append((where, name, vars(where)[name]))
        setattr(where, name, instead)


def accept_stored_results() -> None:
    """Undo :func:`refuse_stored_results` in this process."""
    while _replaced:
        where, name, before = _replaced.pop()
        setattr(where, name, before)


def _refuse(*_: Any, **__: Any) -> Any:
    raise StoredResultRefused(_REFUSED)


async def _refuse_later(*_: Any, **__: Any) -> Any:
    raise StoredResultRefused(_REFUSED)


def _no_serializer(*_: Any, **__: Any) -> Any:
    raise KeyError("stored results are refused, so no serializer is known")


async def _none_later() -> None:
    return None


async def _false_later(store: Any, key: str) -> bool:
    return False


def _checked(begin: Callable[[Any], State[Any]]) -> Callable[[Any], State[Any]]:
    @wraps(begin)
    def begin_run(engine: Any) -> State[Any]:
        reason = _tampered_before(engine)
        if reason is None:
            state = begin(engine)
            reason = _tampered_since(engine)
            if reason is None:
                return state
        engine.set_state(Failed(message=reason), force=True)
        raise StoredResultRefused(reason)

    return begin_run


def _checked_later(begin: Callable[[Any], Awaitable[State[Any]]]) -> Callable[[Any], Awaitable[State[Any]]]:
    @wraps(begin)
    async def begin_run(engine: Any) -> State[Any]:
        reason = _tampered_before(engine)
        if reason is None:
            state = await begin(engine)
            reason = _tampered_since(engine)
            if reason is None:
                return state
        await engine.set_state(Failed(message=reason), force=True)
        raise StoredResultRefused(reason)

    return begin_run


def _tampered_before(engine: Any) -> str | None:
    """Why the run must not begin; None: it may. A flow that stores results may find those of an attempt before."""
    state = engine.flow_run.state
    if engine.flow.persist_result is not False or state is None or state.data is None:
        return None
    return _reason(engine.flow_run)


def _tampered_since(engine: Any) -> str | None:
    """Why the result of the run that has just begun must not be asked for; None: it goes on.

    Prefect's engine takes a state that the server answers with, instead of Running, for the end of the run.
    """
    state = engine.flow_run.state
    own = isinstance(state.data, prefect.results.ResultRecord | BaseException)  # of this process: it failed to begin
    return _reason(engine.flow_run) if state.is_completed() or (state.data is not None and not own) else None


def _reason(flow_run: FlowRun) -> str:
    state = flow_run.state
    assert state is not None
    what = "a result" if state.data is not None else "no result"
    return (
        f"Prefect run {printable(flow_run.name)} ({flow_run.id}): expected a run that has not begun, found state "
        f"{printable(state.name)} with {what} that this process did not store; nothing was loaded. Somebody else "
        "writes to this Prefect server"
    )
