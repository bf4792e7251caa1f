"""The names of the flows in Prefect. Nothing here imports Prefect."""

from __future__ import annotations

FEDERATION_FLOW, SUITE_FLOW, RESIDENT_FLOW = "federation", "suite", "resident"
# All flows; their processes send heartbeats.
FLOWS = (FEDERATION_FLOW, "round", "round-0", "clean-up", RESIDENT_FLOW, SUITE_FLOW)
# Flows whose runs are started again after a crash, and go on from the last commit.
RESUMED_FLOWS = (FEDERATION_FLOW, SUITE_FLOW)
# The names of the variables in which `fedbench deploy` records what it wrote begin so.
RECORDS = "fedbench-deployed-"


def resident_deployment(pool: str) -> str:
    """Return ``flow/deployment`` of the residents on ``pool``."""
    return f"{RESIDENT_FLOW}/{pool}"
