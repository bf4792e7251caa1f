"""Take a turn: the work that a slot does for a request. This module is imported before slots are forked.

It imports no Prefect, which would cost each run over a second and each slot memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tasks.client_eval import client_eval
from tasks.client_resources import client_resources
from tasks.client_update import client_update
from tasks.client_wake_up import client_wake_up
from tasks.draw_sheet import draw_sheet
from tasks.site import Site, this_site
from tasks.spec.turns import AnyRequest, TurnReply

PHASES: dict[str, Callable[[Site, Any], TurnReply]] = {
    "wake_up": client_wake_up,
    "check_client_resource": client_resources,
    "request_update": client_update,
    "stop_and_eval": client_eval,
    "sheet": draw_sheet,
}


def take_turn(request: AnyRequest) -> TurnReply:
    """Do the work of ``request`` for each of its clients, at this machine's site.

    Raises:
        InfraError: this machine or its store failed, not a client; the turn should run again on another slot.
    """
    return PHASES[request.phase](this_site(), request)
