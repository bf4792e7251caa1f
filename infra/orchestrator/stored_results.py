"""Keep this process from loading results that Prefect stored.

The record in storage names the serializer that reads it: cloudpickle, or JSON whose decoder imports classes by name.
Whoever may write to Prefect's server can set a run to Completed with a record of their own, so a process that loads
results can be made to run any code. Prefect has no setting against it; so its private parts that load results are
replaced. They were read against Prefect 3.9.1.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

import prefect.flow_engine
import prefect.results
from prefect.client.schemas.objects import FlowRun
from prefect.states import Failed, State

from infra.errors import StoredResultRefused
from infra.orchestrator.versions import require_tested
from infra.plain_text import printable

require_tested()

# Below the check: with another version it may be gone.
from prefect._internal import result_records  # noqa: E402 (looks up the serializer that a record names)

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
