"""Stand-ins for a federation's handles that a test does not use."""

from __future__ import annotations

from tasks.handles import Handles, Leavings
from tasks.spec.turns import AnyRequest, TurnReply


def no_turn(request: AnyRequest) -> TurnReply:
    """Fail: the test takes no turn."""
    raise AssertionError(f"an unexpected turn: {request!r}")


async def nothing_left(handles: Handles) -> Leavings:
    """Return the leavings of a federation without plots and without a registered model."""
    return Leavings({}, None, None)
