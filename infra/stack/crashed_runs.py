"""Runs of deployments that crashed go on, from their last commit: as the same flow run, some seconds later.

    python -m infra.stack.crashed_runs FLOW_RUN_ID     # one of them; PREFECT_API_URL and _AUTH_STRING tell where

A hook of the crashed run cannot start it again itself: after the hooks its worker says once more that the run has
crashed, and would end what was just begun. So the hook starts the command above
(:func:`flows.coordinator.hooks.go_on`), which waits until all has been said. And no hook is run when Prefect's server
was away at that moment, or when the worker died with its run: so the stack's supervisor looks for such runs too.
Plain HTTP: neither may import Prefect.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from infra.orchestrator.plain_api import PrefectJson
from infra.servers.credentials import basic_auth

log = logging.getLogger(__name__)

MOST_STARTS = 5  # of one flow run, its first included
MOST_CRASHES = 3  # since it was last running: one that cannot begin would crash for ever
SETTLED_SECONDS = 20.0  # since it was last said to have crashed
FORGOTTEN = timedelta(hours=1)  # what crashed before that is for a person to start
TIMEOUT_SECONDS = 10.0
ASK_SECONDS = 3.0
PATIENCE_SECONDS = 900.0  # of the command, with a server that is away


def may_go_on(types: Sequence[str], starts: int) -> bool:
    """Whether a run that was started so often, with these types of states in order, is to be started again."""
    if "RUNNING" not in types or starts >= MOST_STARTS:
        return False
    since = types[::-1].index("RUNNING")
    return list(types[::-1][:since]).count("CRASHED") <= MOST_CRASHES


class Sightings:
    """When crashes were seen first. Their own times are by the clock of whoever reported them, another machine perhaps;
    that clock or this one may be wrong, or have been set since.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: dict[str, float] = {}
        self._new: set[str] = set()
        self._looked = False

    def look(self, ages: Mapping[str, float]) -> set[str]:
        """Those of ``ages`` (seconds by the clocks' times, of each crash) after which the run may be started again: it
        was reported, or seen here, at least :data:`SETTLED_SECONDS` ago; and not :data:`FORGOTTEN` ago, unless it
        happened between two looks.
        """
        now = self._clock()
        if self._looked:
            self._new |= ages.keys() - self._first.keys()
        self._looked = True
        self._first = {crash: self._first.get(crash, now) for crash in ages}
        self._new &= ages.keys()
        return {
            crash
            for crash, age in ages.items()
            if (age >= SETTLED_SECONDS or now - self._first[crash] >= SETTLED_SECONDS)
            and (age <= FORGOTTEN.total_seconds() or crash in self._new)
        }


def _crash(run: Mapping[str, Any]) -> str:
    return f"{run['id']} {run['state']['timestamp']}"


def _age(run: Mapping[str, Any], now: datetime | None) -> float:
    return ((now or datetime.now(UTC)) - datetime.fromisoformat(run["state"]["timestamp"])).total_seconds()


class CrashedRuns:
    """Those of the Prefect server whose API is at ``address``; ``headers`` are what it asks for."""

    def __init__(self, address: str, headers: Mapping[str, str], sightings: Sightings | None = None) -> None:
        """sightings: what was seen at earlier looks; None: this is the first one."""
        self._api = PrefectJson(address, headers, timeout=TIMEOUT_SECONDS)
        self._sightings = sightings or Sightings()

    def go_on(self, flows: Sequence[str], now: datetime | None = None) -> list[str]:
        """Set the runs of ``flows`` (their names) that may go on to AwaitingRetry. Returns the runs' names.

        Raises:
            OSError: the server does not answer, or refuses.
        """
        chosen = {
            "flows": {"name": {"any_": list(flows)}},
            "flow_runs": {"state": {"type": {"any_": ["CRASHED"]}}, "deployment_id": {"is_null_": False}},
            "sort": "START_TIME_DESC",
            "limit": 50,
        }
        runs = self._api.ask("POST", "/flow_runs/filter", chosen)
        settled = self._sightings.look({_crash(run): _age(run, now) for run in runs})
        return [run["name"] for run in runs if _crash(run) in settled and self._start_again(run)]

    def go_on_with(self, run_id: str, now: datetime | None = None) -> bool:
        """The same for one run. Returns whether nothing is left to do, as it has been set, or is not to be.

        Raises:
            OSError: the server does not answer, or refuses.
        """
        run = self._api.ask("GET", f"/flow_runs/{run_id}")
        if run["state"]["type"] != "CRASHED":
            return True
        if _crash(run) not in self._sightings.look({_crash(run): _age(run, now)}):
            return False
        self._start_again(run)
        return True

    def _start_again(self, run: Mapping[str, Any]) -> bool:
        history = self._api.ask("GET", f"/flow_run_states/?flow_run_id={run['id']}")
        in_order = sorted(history, key=lambda state: datetime.fromisoformat(state["timestamp"]))
        if not may_go_on([state["type"] for state in in_order], run["run_count"]):
            return False
        message = f"It goes on from its last committed round (start {run['run_count'] + 1} of {MOST_STARTS})."
        state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": message}
        answer = self._api.ask("POST", f"/flow_runs/{run['id']}/set_state", {"state": state})
        return bool(answer["status"] == "ACCEPT")


def main() -> None:
    auth = os.environ.get("PREFECT_API_AUTH_STRING")
    runs = CrashedRuns(os.environ["PREFECT_API_URL"], basic_auth(auth) if auth else {})
    deadline = time.monotonic() + PATIENCE_SECONDS
    done = False
    while not done and time.monotonic() < deadline:
        time.sleep(ASK_SECONDS)
        try:
            done = runs.go_on_with(sys.argv[1])
        except OSError as error:
            log.warning("Prefect does not answer yet: %s", error)


if __name__ == "__main__":
    main()
