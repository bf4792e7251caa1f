"""The federation: one round after another until it stops.

``fedbench run`` sets the handles (:mod:`tasks.handles`) before it calls the flow. A run that Prefect started opens
its handles itself.
"""

from __future__ import annotations

import asyncio
from uuid import UUID

from prefect import flow, runtime

from flows.commit import apply_retention
from flows.coordinator.changed_spec import MaxRounds, Overrides, Spec, changed_spec
from flows.coordinator.deployed import deployed_name, run_deployed
from flows.coordinator.hooks import go_on, let_residents_go
from flows.coordinator.mending import mended_history
from flows.fine_tuning import fine_tuned, tuning_is_due
from flows.round import federated_round, initial_round
from flows.stored.runs import require_scores, stopped
from flows.views.prefect_page import RunArtifacts, show_clients
from infra.orchestrator.flow_runs import tag_run
from tasks.errors import SpecError
from tasks.handles import current_handles, has_handles
from tasks.spec.base import ScheduledName
from tasks.spec.federation import FederationSpec
from tasks.wake_up import wake_up


def run_name() -> str:
    """Return the ``name`` parameter of this flow run; without one, a name from its deployment and scheduled time."""
    name: str | None = runtime.flow_run.parameters.get("name")
    if name is None:
        name = deployed_name()
    return name


@flow(
    name="federation",
    flow_run_name=run_name,
    persist_result=False,
    on_cancellation=[let_residents_go],
    on_crashed=[let_residents_go, go_on],
)
async def federation(
    name: ScheduledName = None,
    spec: Spec = FederationSpec(),  # noqa: B008
    max_rounds: MaxRounds = None,
    overrides: Overrides = None,
) -> int:
    """Run a federation from its last commit until it stops. Returns the number of its last round.

    Args:
        name: The federation's name, in the store and everywhere else. An existing federation of this name is
            continued. Left out: deployment and scheduled time, so that every run is a new federation.
        spec: The experiment, with all of its fields. A change here is of this run alone.
        max_rounds: On a page, change Max rounds of the specification. In a command, this is the last round's number
            in place of the specification's: prefect deployment run ... -p max_rounds=1
        overrides: On a page, change the fields of the specification. In a command, these are fields in place of the
            specification's, by their dotted names: -p overrides='{"training.batch_size": 2}'

    Raises:
        FedbenchError, InfraError: the federation cannot start or go on; the message says why.
    """
    spec = changed_spec(spec, max_rounds, overrides)
    if name is not None and has_handles():
        return await rounds(name, spec)
    return await run_deployed(name, spec, rounds)


async def rounds(name: str, spec: FederationSpec) -> int:
    """Run the rounds of ``name`` with the current handles until it stops. Return the number of its last round.

    Raises:
        FedbenchError: all rounds are committed, but every evaluation failed; or as :func:`federation`.
    """
    handles = current_handles()
    flow_run_id = UUID(runtime.flow_run.get_id())
    with handles.views.showing("the tag of Prefect's run"):
        await tag_run(flow_run_id, name, kind="federation")
    await asyncio.to_thread(handles.started, str(flow_run_id))
    await handles.slots.open(str(flow_run_id))
    shown = RunArtifacts(name, spec, handles.views)
    history = await asyncio.to_thread(mended_history, handles, spec)
    handles.history = history
    if history and not stopped(spec, history):
        # A coordinator that was killed right after the commit has left what retention does not keep.
        await asyncio.to_thread(apply_retention, handles, history[-1])
    clients = spec.clients
    if clients is None:
        raise SpecError(f"{name}: participation.clients: expected the data set's devices, which pin_data fills in")
    needed = spec.participation.min_clients or len(clients) // 2 + 1
    due = stopped(spec, history) and await asyncio.to_thread(tuning_is_due, handles, spec, history)
    if due or not stopped(spec, history):
        handles.ready, handles.not_ready = await wake_up(name, spec, clients, needed)
    await shown.begin(history)
    if stopped(spec, history) and history[-1].plan is not None:  # only the last round's display may be missing
        await show_clients(handles, history[-1])
    while not stopped(spec, history):
        number = len(history)
        handles.reporter.round_started(number)
        if number == 0:
            record = await initial_round(name, spec)
        else:
            record = await federated_round(name, spec, number)
        history.append(record)
        await asyncio.to_thread(handles.committed, record)
        # Not during the next round: on SQLite, Prefect's server refuses one of two simultaneous writers for 2 s.
        await shown.round_committed(history)
    if spec.fine_tuning is not None:
        handles.tuned = await fine_tuned(name, spec, history[-1])
    await shown.finish(history, await handles.finished(handles))
    handles.views.keep()
    handles.views.tell(handles.reporter.warning)
    require_scores(name, history)
    return history[-1].round
