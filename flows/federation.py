"""The federation: rounds until it stops. Its process sets the place (:mod:`infra.place`) before it calls the flow."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID

from prefect import flow, runtime
from prefect.artifacts import acreate_markdown_artifact

from flows.prefect_runs import tag_run
from flows.round import federated_round, initial_round
from flows.stored import read_history, stopped
from infra.place import current_place
from tasks.errors import SpecError
from tasks.spec.base import FederationName
from tasks.spec.federation import FederationSpec
from tasks.spec.records import RoundRecord
from tasks.wake_up import wake_up


@flow(name="federation", flow_run_name="{name}", persist_result=False)
async def federation(name: FederationName, spec: FederationSpec) -> int:
    """Run the federation ``name`` from its last commit until it stops. Returns the number of its last round.

    Raises:
        FedbenchError: it cannot go on; the message says why.
    """
    place = current_place()
    flow_run_id = UUID(runtime.flow_run.get_id())
    await tag_run(flow_run_id, name)
    await asyncio.to_thread(place.started, str(flow_run_id))
    history = await asyncio.to_thread(read_history, place.objects, place.layout)
    place.history = history
    clients = spec.clients
    if clients is None:
        raise SpecError(f"{name}: participation.clients: expected the data set's devices, which pin_data fills in")
    needed = spec.participation.min_clients or len(clients) // 2 + 1
    if not stopped(spec, history):
        place.ready, place.not_ready = await wake_up(name, spec, clients, needed)
    while not stopped(spec, history):
        number = len(history)
        place.reporter.round_started(number)
        if number == 0:
            record = await initial_round(name, spec)
        else:
            record = await federated_round(name, spec, number)
        history.append(record)
        await asyncio.to_thread(place.committed, record)
    await acreate_markdown_artifact(
        key=f"federation-{name}".lower().replace(".", "-").replace("_", "-"),
        markdown=summary(name, history),
        description=f"Federation {name}",
    )
    return history[-1].round


def summary(name: str, history: Sequence[RoundRecord]) -> str:
    """The federation's rounds as a Markdown table."""
    lines = [
        f"# {name}",
        "",
        "| round | clients | train loss | test loss | map50_voc10 | recall |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for record in history:
        metrics = record.metrics
        values = (metrics.train_loss, metrics.loss, metrics.map50_voc10, metrics.recall)
        shown = " | ".join("–" if value is None else f"{value:.4g}" for value in values)
        lines.append(f"| {record.round} | {len(record.updates)} | {shown} |")
    last = history[-1].decision
    lines += ["", f"Best: round {last.best_round}. Stopped by: {last.reason or 'nothing yet'}."]
    return "\n".join(lines)
