"""Runs of deployments that crashed and that nobody has started again: they go on, from their last commit.

A worker's hook does that at once (:func:`flows.ends.go_on`), unless Prefect's server is away at that moment: then the
worker says only later that the run has crashed, and runs no hook. A worker that was killed with its run says nothing
at all. So the stack's supervisor looks too, by plain HTTP: it must not import Prefect.
"""

from __future__ import annotations

import json
import logging
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

log = logging.getLogger(__name__)

FLOWS = ("federation", "suite")
MOST_STARTS = 5  # of one flow run, its first included
# The worker may still be about to say, a second time, that it crashed; its hook may be about to start it again.
SETTLED_SECONDS = 20.0
FORGOTTEN = timedelta(hours=1)  # what crashed before that is for a person to start
TIMEOUT_SECONDS = 10.0


def message_of(starts: int) -> str:
    """Of the state that a crashed run is set to, which has been started so often."""
    return f"It goes on from its last committed round (start {starts + 1} of {MOST_STARTS})."


def had_begun(types: Sequence[str]) -> bool:
    """Whether a run with these types of states, in order, was Running since it was last scheduled.

    One that cannot begin would crash for ever.
    """
    begun = False
    for kind in types:
        if kind == "SCHEDULED":
            begun = False
        elif kind == "RUNNING":
            begun = True
    return begun


class CrashedRuns:
    """Those of the Prefect server whose API is at ``address``; ``headers`` are what it asks for."""

    def __init__(self, address: str, headers: Mapping[str, str]) -> None:
        self._address = address
        self._headers = {"Content-Type": "application/json", **headers}

    def go_on(self, now: datetime | None = None) -> list[str]:
        """Set those that may go on to AwaitingRetry. Returns their names.

        Raises:
            OSError: the server does not answer, or refuses.
        """
        now = now or datetime.now(UTC)
        chosen = {
            "flows": {"name": {"any_": list(FLOWS)}},
            "flow_runs": {
                "state": {"type": {"any_": ["CRASHED"]}},
                "deployment_id": {"is_null_": False},
            },
            "sort": "START_TIME_DESC",
            "limit": 50,
        }
        names = []
        for run in self._post("/flow_runs/filter", chosen):
            age = now - datetime.fromisoformat(run["state"]["timestamp"])
            if not timedelta(seconds=SETTLED_SECONDS) <= age <= FORGOTTEN or run["run_count"] >= MOST_STARTS:
                continue
            history = self._get(f"/flow_run_states/?flow_run_id={run['id']}")
            in_order = sorted(history, key=lambda state: datetime.fromisoformat(state["timestamp"]))
            if not had_begun([state["type"] for state in in_order]):
                continue
            state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": message_of(run["run_count"])}
            self._post(f"/flow_runs/{run['id']}/set_state", {"state": state, "force": True})
            names.append(run["name"])
        return names

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._ask(urllib.request.Request(f"{self._address}{path}", json.dumps(body).encode(), self._headers))

    def _get(self, path: str) -> Any:
        return self._ask(urllib.request.Request(f"{self._address}{path}", headers=self._headers))

    def _ask(self, request: urllib.request.Request) -> Any:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
            return json.load(answer)
