"""Keep this process from loading results that Prefect stored.

A record in the storage names the serializer that reads it: cloudpickle, or JSON whose decoder imports classes by name.
Anyone who may write to Prefect's server can set a run to Completed with a record of their own, and so make a process
that loads results run any code. Prefect has no setting against this, so this module replaces its private parts that
load results. They were read against Prefect 3.9.1.
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

# Imported after the check, because other versions may not have it.
from prefect._internal import result_records  # noqa: E402 (looks up the serializer that a record names)

_REFUSED = (
    "Prefect tried to load a stored result: refused, because that can run any code, and fedbench's runs store none"
)
# Each replaced part: the object that has it, its name there, and the original.
_replaced: list[tuple[Any, str, Any]] = []


def refuse_stored_results() -> None:
    """Refuse stored results in this process from now on. Further calls have no effect.

    The process then loads no result that Prefect stored, imports nothing that a stored record names, and begins no flow
    run whose state has such a record. Results that a flow or task returns in this process still work: Prefect keeps
    them in memory.
    """
    if _replaced:
        return
    results, engine = prefect.results, prefect.flow_engine
    for where, name, instead in (
        # Whatever reads a record calls one of these two.
        (results.ResultRecord, "deserialize", classmethod(_refuse)),
        (results.ResultRecord, "deserialize_from_result_and_metadata", classmethod(_refuse)),
        # Before that, a block of the server names the record's storage, and the record is fetched from there.
        (results.ResultStore, "_from_metadata", classmethod(_refuse_later)),
        (results.ResultStore, "_read", _refuse),
        (results.ResultStore, "_aread", _refuse_later),
        # A task that looks for a cached result finds none, and runs.
        (results.ResultStore, "_exists", lambda store, key: False),
        (results.ResultStore, "_aexists", _false_later),
        # Parsing a state imports the pickle library that its record names. A record of unknown type stays plain data.
        (result_records, "lookup_type", _no_serializer),
        # A storage block that the server sets for all flows would make them store results and look for some there.
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
    """Return why the run must not begin, or None. A flow that stores results may find those of an earlier attempt."""
    state = engine.flow_run.state
    if engine.flow.persist_result is not False or state is None or state.data is None:
        return None
    return _reason(engine.flow_run)


def _tampered_since(engine: Any) -> str | None:
    """Return why a run that has just begun must not go on, or None.

    If the server answers with another state than Running, Prefect's engine takes the run as ended and loads the
    result of that state.
    """
    state = engine.flow_run.state
    own = isinstance(state.data, prefect.results.ResultRecord | BaseException)  # set here: the run failed to begin
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
