"""Prefect automations that ship with fedbench: one closes runs whose process is gone.

A killed process cannot say so, and Prefect would show its run as Running for ever. Every flow run of ours sends a
heartbeat each :data:`HEARTBEAT_SECONDS`; the server sets a run to Crashed that has sent none for
:data:`SILENCE_SECONDS`. ``flows.prefect_runs.close_dead_runs`` does the same at once when a federation is started
again, because whoever holds its lock knows; the automation is for those that nobody starts again.

Prefect is imported late: whoever starts its server sets the environment first, :data:`HEARTBEAT_VARIABLE` too.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Literal
from uuid import UUID

if TYPE_CHECKING:
    from prefect.events.schemas.automations import AutomationCore

# Of the processes that run flows; Prefect's own default is 180 s, with which every run would be taken for dead.
HEARTBEAT_VARIABLE = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
HEARTBEAT_SECONDS = 30  # the least that Prefect takes
# Two heartbeats may be lost and a third late, on a machine that is asked too much, without a false alarm.
SILENCE_SECONDS = 120

NAME = "fedbench: close runs whose process is gone"
Done = Literal["made", "changed", "there"]
# Flows whose processes send the heartbeat this often; a server's other flows are none of ours.
FLOWS = ("federation", "round", "round-0", "clean-up", "resident")
_HEARTBEAT = "prefect.flow-run.heartbeat"
# A suspended run has no process, and is not dead.
_ENDS = frozenset(f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed", "Suspended"))


def dead_run_automation(flows: Sequence[str] = FLOWS) -> AutomationCore:
    """Sets runs of ``flows`` (their names) to Crashed after :data:`SILENCE_SECONDS` without a heartbeat or an end."""
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    return AutomationCore(
        name=NAME,
        description=f"A run of fedbench that has sent no heartbeat for {SILENCE_SECONDS} s is set to Crashed.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={"prefect.resource.role": "flow", "prefect.resource.name": list(flows)},
            for_each={"prefect.resource.id"},
            after={_HEARTBEAT},
            expect={_HEARTBEAT, *_ENDS},
            threshold=1,
            within=timedelta(seconds=SILENCE_SECONDS),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                message=f"No heartbeat for {SILENCE_SECONDS} s: the process of this run is gone.",
            )
        ],
    )


async def ensure_automation(wanted: AutomationCore) -> tuple[UUID, Done]:
    """Have the automation at the Prefect server as it is here: made, or brought up to date, once. Returns its id.

    It is known by its name. One that is right is not touched: the server would forget the heartbeats that it has
    counted. One that somebody has disabled stays disabled. What older versions left double is removed.
    """
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        found = await client.read_automations_by_name(wanted.name)
        for double in found[1:]:
            await client.delete_automation(double.id)
        if not found:
            return await client.create_automation(wanted), "made"
        there = found[0]
        wanted = wanted.model_copy(update={"enabled": there.enabled})
        fields = ("description", "trigger", "actions")
        if any(_document(there, name) != _document(wanted, name) for name in fields):
            await client.update_automation(there.id, wanted)
            return there.id, "changed"
        return there.id, "there"


def _document(automation: AutomationCore, name: str) -> object:
    """A field as plain values, in which sets and the server's defaults do not differ by their order or kind."""
    return _sorted(automation.model_dump(mode="json", include={name})[name])


def _sorted(value: object) -> object:
    if isinstance(value, dict):
        return {key: _sorted(item) for key, item in value.items() if key != "id"}
    if isinstance(value, list):
        return sorted((_sorted(item) for item in value), key=repr)
    return value
