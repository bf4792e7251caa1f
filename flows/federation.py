"""The federation: rounds until it stops. Its process sets the place (:mod:`infra.place`) before it calls the flow."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID

from prefect import flow, runtime
from prefect.artifacts import acreate_markdown_artifact

from flows.prefect_runs import tag_run
from flows.round import federated_round, initial_round
from infra.place import Place, current_place
from tasks.errors import FedbenchError
from tasks.spec.base import RECORD_VERSION, FederationName, parse
from tasks.spec.federation import FederationSpec
from tasks.spec.records import RoundRecord
from tasks.wake_up import wake_up


def read_history(place: Place) -> list[RoundRecord]:
    """Records of the committed rounds, from 0.

    Raises:
        SpecError: a record is of a newer version, or is damaged.
        FedbenchError: a round's marker is missing before the last.
    """
    layout = place.layout
    numbers = layout.committed_rounds(place.objects.list(layout.rounds))
    if numbers != list(range(len(numbers))):
        missing = sorted(set(range(numbers[-1])) - set(numbers))
        raise FedbenchError(f"{layout.federation}: round.json of round {missing[0]} is missing in the store")
    return [
        parse(
            RoundRecord,
            place.objects.get_json(layout.marker(number)),
            source=layout.marker(number),
            newest=RECORD_VERSION,
        )
        for number in numbers
    ]


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
    history = await asyncio.to_thread(read_history, place)
    place.history = history
    clients = spec.participation.clients or tuple(str(number) for number in range(1, spec.data.split + 1))
    needed = spec.participation.min_clients or len(clients) // 2 + 1
    if not (history and stopped(spec, history)):
        ready, not_ready = await wake_up(name, spec, clients, needed)
    while not (history and stopped(spec, history)):
        number = len(history)
        place.reporter.round_started(number)
        if number == 0:
            record = await initial_round(name, spec, ready, not_ready)
        else:
            record = await federated_round(name, spec, number, ready, not_ready)
        history.append(record)
        await asyncio.to_thread(place.committed, record)
    await acreate_markdown_artifact(
        key=f"federation-{name}".lower().replace(".", "-").replace("_", "-"),
        markdown=summary(name, history),
        description=f"Federation {name}",
    )
    return history[-1].round


def stopped(spec: FederationSpec, history: Sequence[RoundRecord]) -> bool:
    """Whether the last committed round was the last: its decision, unless only ``max_rounds`` stopped it and grew."""
    decision = history[-1].decision
    if decision.stop and decision.reason != "max_rounds":
        return True
    return history[-1].round >= spec.max_rounds


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
