"""Restart crashed runs of deployments from their last commit, as the same flow run, some seconds later.

    python -m infra.stack.crashed_runs FLOW_RUN_ID     # on the server of PREFECT_API_URL, PREFECT_API_AUTH_STRING

A hook of the crashed run cannot restart it: after the hooks, its worker reports the crash once more, which would end
the new start. So the hook starts the command above (:func:`flows.coordinator.hooks.go_on`), which waits for that
report. No hook runs when Prefect's server was away at that moment, or when the worker died with its run. So the stack's
supervisor looks for crashed runs too. Both use plain HTTP, because neither may import Prefect.
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

MOST_STARTS = 5  # of one flow run, including the first
MOST_CRASHES = 3  # since it was last running: a run that cannot begin would crash for ever
SETTLED_SECONDS = 20.0  # since the last report of the crash
FORGOTTEN = timedelta(hours=1)  # a run that crashed earlier must be started by a person
TIMEOUT_SECONDS = 10.0
ASK_SECONDS = 3.0
PATIENCE_SECONDS = 900.0  # how long the command waits for a server that is away


def may_go_on(types: Sequence[str], starts: int) -> bool:
    """Whether to restart a run. types: of its states, oldest first. starts: how often it was started."""
    if "RUNNING" not in types or starts >= MOST_STARTS:
        return False
    since = types[::-1].index("RUNNING")
    return list(types[::-1][:since]).count("CRASHED") <= MOST_CRASHES


class Sightings:
    """Records when each crash was first seen here.

    A crash's own time comes from the clock of the process that reported it, perhaps on another machine. That clock or
    this one may be wrong, or may have been set since.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: dict[str, float] = {}
        self._new: set[str] = set()
        self._looked = False

    def look(self, ages: Mapping[str, float]) -> set[str]:
        """Return the crashes after which the run may be restarted.

        Such a crash was reported, or first seen here, at least :data:`SETTLED_SECONDS` ago. It was reported at most
        :data:`FORGOTTEN` ago, or happened between two looks.

        ages: seconds since each crash, by its reported time.
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
    """Restarts crashed runs of the Prefect server whose API is at ``address``. headers: its credentials."""

    def __init__(self, address: str, headers: Mapping[str, str], sightings: Sightings | None = None) -> None:
        """sightings: what was seen at earlier looks; None: this is the first one."""
        self._api = PrefectJson(address, headers, timeout=TIMEOUT_SECONDS)
        self._sightings = sightings or Sightings()

    def go_on(self, flows: Sequence[str], now: datetime | None = None) -> list[str]:
        """Set those runs of ``flows`` (names) to AwaitingRetry that may be restarted. Return the runs' names.

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
        """Do the same for one run. Return False if it is to be tried again later, else True.

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
