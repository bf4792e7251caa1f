"""An attacker with write access to a Prefect server plants results in runs' states, and code in its database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

from flows.deployments.names import RECORDS
from infra.orchestrator.plain_api import PrefectJson
from infra.servers.credentials import basic_auth
from tests.planted import Plant, make_plants

# The reason that a run logs when it ends because somebody set it to Completed.
REFUSED = "expected a run that has not begun, found state Completed with a result"


def current_access() -> PrefectJson:
    """Return access to the Prefect server that this process's settings name."""
    auth = PREFECT_API_AUTH_STRING.value()
    return PrefectJson(str(PREFECT_API_URL.value()), {} if auth is None else basic_auth(str(auth)))


@dataclass(frozen=True)
class Attacker:
    """An attacker who can write to the server of ``api`` and has plants in ``folder``."""

    api: PrefectJson
    folder: Path
    plants: dict[str, Plant]

    def plant(self, run: str, kind: str) -> None:
        """Set the run to Completed, with the plant ``kind`` as its result."""
        state = {"type": "COMPLETED", "name": "Completed", "data": self.plants[kind].data}
        self.api.ask("POST", f"/flow_runs/{run}/set_state", {"state": state, "force": True})

    def ran(self) -> list[str]:
        """Return the plants whose code has run."""
        return sorted(path.name for path in self.folder.glob("*.ran"))


def attacker(api: PrefectJson, folder: Path, block_name: str = "planted") -> Attacker:
    """Make an attacker with all plants. The plant "block" is loaded through a file-system block of the server."""
    plants = make_plants(folder)
    block_type = api.ask("GET", "/block_types/slug/local-file-system")
    (schema,) = api.ask(
        "POST", "/block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [block_type["id"]]}}}
    )[:1]
    body = {"name": block_name, "block_type_id": block_type["id"], "block_schema_id": schema["id"]}
    block = api.ask("POST", "/block_documents/", {**body, "data": {"basepath": str(folder)}})["id"]
    through = {**plants["pickle"].data, "storage_key": "pickle.record", "storage_block_id": block}
    return Attacker(api, folder, {**plants, "block": Plant(through, plants["pickle"].marker)})


class Attack:
    """A context that sets every chosen pending run to Completed. ``hit`` lists the ids of these runs."""

    def __init__(self, by: Attacker, kind: str, chosen: Callable[[dict[str, Any]], bool] = lambda run: True) -> None:
        self.hit: list[str] = []
        self._by, self._kind, self._chosen = by, kind, chosen
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        pending = {"flow_runs": {"state": {"type": {"any_": ["PENDING"]}}}}
        while not self._done.is_set():
            for run in self._by.api.all("flow_runs", **pending):
                if self._chosen(run):
                    self._by.plant(run["id"], self._kind)
                    self.hit.append(run["id"])
            time.sleep(0.005)

    def __enter__(self) -> Attack:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def plant_in_database(by: Attacker) -> dict[str, str]:
    """Plant a deployment, change one of fedbench's, add runs, job templates, an automation and more. Return the ids."""
    ask, made = by.api.ask, {}

    def touch(name: str) -> str:
        return f"touch {by.folder / name}.ran"

    flows = {name: ask("POST", "/flows/", {"name": name})["id"] for name in ("evil", "clean-up")}
    variables = {"properties": {"command": {"default": touch("template")}}}
    template = {"job_configuration": {"command": "{{ command }}"}, "variables": variables}
    for pool in ("fedbench", "others"):
        ask("POST", "/work_pools/", {"name": pool, "type": "process", "base_job_template": template})
    step = {"prefect.deployments.steps.run_shell_script": {"script": touch("step")}}
    for name, flow, deployment, entrypoint in (
        ("foreign", "evil", "evil", "planted_module_named.dumps"),
        ("changed", "clean-up", "store", "flows.clean_up.clean_up"),
    ):
        body = {
            "flow_id": flows[flow],
            "name": deployment,
            "work_pool_name": "fedbench",
            "entrypoint": entrypoint,
            "pull_steps": [step],
            "job_variables": {"command": touch("command")},
        }
        made[name] = ask("POST", "/deployments/", body)["id"]
        made[f"run of {name}"] = ask("POST", f"/deployments/{made[name]}/create_flow_run", {})["id"]
        made[f"crashed run of {name}"] = ask("POST", f"/deployments/{made[name]}/create_flow_run", {})["id"]
        state = {"state": {"type": "CRASHED", "name": "Crashed"}, "force": True}
        ask("POST", f"/flow_runs/{made[f'crashed run of {name}']}/set_state", state)
    schedule = {"schedule": {"interval": 3600}, "active": True, "parameters": {"apply": True}, "slug": "fedbench"}
    ask("POST", f"/deployments/{made['changed']}/schedules", [schedule])
    ask("POST", "/variables/", {"name": "planted", "value": "red"})
    record = {"deployment": made["changed"], "fields": {}, "schedule": None}  # makes every value a person's change
    ask("POST", "/variables/", {"name": f"{RECORDS}planted", "value": record})
    ask("PUT", "/admin/storage", {"default_result_storage_block_id": by.plants["block"].data["storage_block_id"]})
    trigger = {"type": "event", "posture": "Reactive", "expect": ["any.event"], "threshold": 1, "within": 0}
    action = {"type": "run-deployment", "source": "selected", "deployment_id": made["foreign"], "parameters": {}}
    automation = {"name": "planted \x1b[31m", "trigger": trigger, "actions": [action]}
    made["automation"] = ask("POST", "/automations/", automation)["id"]
    return made


def found_in(made: dict[str, str]) -> list[str]:
    """Return the lines that a command prints about what :func:`plant_in_database` ``made``."""
    return [
        f"deployment evil/evil; paused; remove: prefect deployment delete --id {made['foreign']}",
        "deployment clean-up/store; put back: pull_steps, job_variables.command",
        "schedule of clean-up/store; switched off",
        " of evil/evil; cancelled",
        " of clean-up/store; cancelled",
        "work pool fedbench; its job template was put back",
        "work pool others; remove: prefect work-pool delete others",
        f"automation planted \\x1b[31m; disabled; remove: prefect automation delete --id {made['automation']}",
        "block local-file-system/planted; remove: prefect block delete --id ",
        "result storage ",
        "variable planted; remove: prefect variable delete planted",
    ]


def assert_held_back(by: Attacker, made: dict[str, str]) -> None:
    ask = by.api.ask
    assert ask("GET", f"/deployments/{made['foreign']}")["paused"]
    changed = ask("GET", f"/deployments/{made['changed']}")
    assert (changed["entrypoint"], changed["pull_steps"]) == ("flows.clean_up.clean_up", [])
    assert "command" not in changed["job_variables"]
    assert by.folder.name not in str(ask("GET", "/work_pools/fedbench"))
    assert not ask("GET", f"/automations/{made['automation']}")["enabled"]
    assert f"{RECORDS}planted" not in {item["name"] for item in by.api.all("variables")}
    assert ask("GET", "/admin/storage")["default_result_storage_block_id"] is None
    assert [schedule["active"] for schedule in changed["schedules"]] == [False]
    assert ask("GET", f"/flow_runs/{made['crashed run of changed']}")["state"]["type"] == "CRASHED"
    for name in ("run of foreign", "run of changed", "crashed run of foreign"):
        assert ask("GET", f"/flow_runs/{made[name]}")["state"]["type"] == "CANCELLED"
