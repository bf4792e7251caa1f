"""The Prefect automations of fedbench: one closes runs whose process is gone, one sends notifications of regressions.

A killed process cannot report its end, and Prefect would show its run as Running for ever. Every flow run of fedbench
sends a heartbeat each :data:`HEARTBEAT_SECONDS`. The server sets a run to Crashed that has sent none for
:data:`SILENCE_SECONDS`. ``infra.orchestrator.flow_runs.close_dead_runs`` does the same at once when a federation is
started again, because the holder of its lock knows that no other process runs it. The automation is for runs that
nobody starts again.

A scheduled suite whose result is worse than the accepted one ends as Failed, with a message that names the difference.
The second automation sends this message through a notification block of the user's. It is created only if the user
named a block, because only the user knows where messages should go.

Prefect is imported inside the functions, because the process that starts its server sets the environment first, with
:data:`HEARTBEAT_VARIABLE`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Literal
from uuid import UUID

from infra.errors import SettingsError

if TYPE_CHECKING:
    from prefect.events.schemas.automations import AutomationCore

# Set in the processes that run flows. With Prefect's own default, 180 s, every run would seem dead.
HEARTBEAT_VARIABLE = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
HEARTBEAT_SECONDS = 30  # the least that Prefect accepts
# On an overloaded machine, two heartbeats may be lost and a third late without a false alarm.
SILENCE_SECONDS = 120

NAME = "fedbench: close runs whose process is gone"
Done = Literal["made", "changed", "there"]
_HEARTBEAT = "prefect.flow-run.heartbeat"
# A suspended run has no process, and is not dead.
_ENDS = frozenset(f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed", "Suspended"))


def dead_run_automation(flows: Sequence[str]) -> AutomationCore:
    """Return the automation that sets runs without a heartbeat or an end for :data:`SILENCE_SECONDS` to Crashed.

    flows: names of the flows whose runs it watches; their processes send heartbeats.
    """
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


REGRESSIONS = "fedbench: tell of failed suites"
_SUBJECT = "fedbench: {{ flow.name }} {{ flow_run.name }} {{ flow_run.state.name }}"
# A cell's reason may contain text that a client wrote. It is a value of this template and never a template itself, but
# a block may read it as more than text: chats read <…> as links and mentions of all, @… as mentions and ](…) as a
# link's target, and a custom webhook reads {{…}} as a placeholder of its own.
_OTHER_LETTERS = {"<": "‹", ">": "›", "@": "＠", "](": "] (", "{{": "{ {"}
_MESSAGE = "flow_run.state.message" + "".join(f" | replace({old!r}, {new!r})" for old, new in _OTHER_LETTERS.items())
# Without a link to the run: a server need not know its page's address.
_BODY = f"{{{{ {_MESSAGE} }}}}\n\nPrefect flow run {{{{ flow_run.id }}}}"


def regression_automation(block: UUID, flow: str) -> AutomationCore:
    """Return the automation that sends the message of each failed run of ``flow`` through a notification block.

    block: id of the block's document. flow: name of the flow of suites, which fails if the result is worse than the
    accepted one or if cells fail.
    """
    from prefect.events.actions import SendNotification
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    return AutomationCore(
        name=REGRESSIONS,
        description="If a suite fails, as by a regression, the message of its state is sent.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={"prefect.resource.role": "flow", "prefect.resource.name": flow},
            for_each={"prefect.resource.id"},
            expect={"prefect.flow-run.Failed"},
            threshold=1,
            within=timedelta(0),
        ),
        actions=[SendNotification(block_document_id=block, subject=_SUBJECT, body=_BODY)],
    )


async def notification_block(name: str) -> UUID:
    """Return the id of the notification block ``name`` (``TYPE/NAME``, as ``slack-webhook/team``) on Prefect's server.

    Raises:
        SettingsError: the name has not this form, the server has no such block, or it is not for notifications.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    kind, slash, own = name.partition("/")
    if not (slash and kind and own):
        raise SettingsError(f"--notify {name}: expected TYPE/NAME of a block, as in slack-webhook/team")
    async with get_client() as client:
        try:
            document = await client.read_block_document_by_name(name=own, block_type_slug=kind)
        except ObjectNotFound:
            raise SettingsError(
                f"--notify {name}: no such block on the Prefect server; `prefect block ls` lists those that it has"
            ) from None
    schema = document.block_schema
    if schema is None or "notify" not in schema.capabilities:
        raise SettingsError(f"--notify {name}: expected a notification block, as slack-webhook or custom-webhook")
    return document.id


async def ensure_automation(wanted: AutomationCore) -> tuple[UUID, Done]:
    """Create the automation on the Prefect server, or update it. Return its id, and what was done.

    Its name identifies it. An automation that is up to date is not written again, because the server would forget the
    heartbeats that it has counted. An automation that somebody has disabled stays disabled. Duplicates of the name,
    which older versions could create, are removed.
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
    """Return a field as plain values without ids, with lists sorted: the order of sets is no difference."""
    return _sorted(automation.model_dump(mode="json", include={name})[name])


def _sorted(value: object) -> object:
    if isinstance(value, dict):
        return {key: _sorted(item) for key, item in value.items() if key != "id"}
    if isinstance(value, list):
        return sorted((_sorted(item) for item in value), key=repr)
    return value
