"""Search a Prefect database that others could write to: report what they may have left, and keep it from running.

A server that asks for no credentials lets every user of its machine write: deployments, runs that wait for a worker,
templates of work pools, automations. All of these outlive that server, and a worker that is started later on the same
database runs them. So a home keeps a list of its databases that only servers with credentials have opened. A database
that is not on the list is searched before anything else uses it, and put on the list afterwards.

What is held back, so that nothing planted runs:

- Runs that wait for a worker are cancelled, even those of fedbench's own deployments: nobody can tell who made them.
  Scheduled runs of fedbench's deployments are removed instead, and their schedule makes them again. Runs of other
  deployments are also cancelled when they are running or have crashed, because the stack restarts crashed runs.
- Deployments that are not fedbench's are paused. fedbench's own get back the entry point and job variables that decide
  which code runs. Their schedules are switched off unless ``fedbench deploy`` made them.
- The records of what ``fedbench deploy`` wrote are removed, so that the next one writes the deployments anew, and takes
  nothing there for a person's change.
- Work pools of fedbench get their job template back. Automations that are not fedbench's are disabled. A server-wide
  storage for results is switched off.

Blocks, variables and other pools do nothing by themselves, so they are only reported. Nothing that a person may have
made is deleted, and a file keeps everything as it was found.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from infra.files.durable import write_durably
from infra.orchestrator.plain_api import PrefectJson
from infra.plain_text import printable
from infra.servers.database import shown

LIST = "guarded-databases.json"
SQLITE = "SQLite"
# States of a run that a worker may still start or cancel. A run that is running has its process already.
WAITING = ("SCHEDULED", "PENDING", "PAUSED", "CANCELLING")
# All states from which a run may go on.
OPEN = (*WAITING, "RUNNING", "CRASHED")
# The job variables that decide which code a run executes.
CODE_VARIABLES = ("command", "env", "working_dir")
MOST_NAMED = 10  # findings of one kind that are printed; the file has all
_CANCELLED = "Cancelled by fedbench: it waited in a database that others could write to."


@dataclass(frozen=True)
class Own:
    """What fedbench itself makes on a Prefect server.

    deployments: entry point by full name. job_variables: those of its deployments. schedule: slug of its schedules.
    pools: job template by name. automations: types of their actions by name. records: how the names of the variables
    begin that have what was written into deployments.
    """

    deployments: Mapping[str, str]
    job_variables: Mapping[str, Any]
    schedule: str
    pools: Mapping[str, Mapping[str, Any]]
    automations: Mapping[str, frozenset[str]]
    records: str


@dataclass(frozen=True)
class Finding:
    """Something that fedbench did not make, or made differently.

    done: what was done to hold it back; empty: nothing was needed. remove: the command that removes it.
    """

    kind: str
    name: str
    done: str
    remove: str = ""

    def line(self) -> str:
        return "; ".join(part for part in (f"{self.kind} {self.name}", self.done, self.remove) if part)


def note_start(home: Path, database_url: str | None) -> None:
    """Put the database on the list if it does not exist yet: a server with credentials is about to make it."""
    if database_url is None and not (home / "prefect" / "prefect.db").exists():
        note_guarded(home, database_url)


def is_guarded(home: Path, database_url: str | None) -> bool:
    """Whether only servers with credentials have opened the database since it was made or looked through."""
    return _name(database_url) in _guarded(home)


def note_guarded(home: Path, database_url: str | None) -> None:
    """Put the database on the list."""
    names = sorted({*_guarded(home), _name(database_url)})
    write_durably(home / "prefect" / LIST, json.dumps(names))


def _name(database_url: str | None) -> str:
    return SQLITE if database_url is None else shown(database_url)


def _guarded(home: Path) -> list[str]:
    try:
        found = json.loads((home / "prefect" / LIST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [item for item in found if isinstance(item, str)] if isinstance(found, list) else []


def hold_back(api: PrefectJson, own: Own, folder: Path) -> tuple[list[Finding], Path | None]:
    """Find what is not fedbench's on the server of ``api``, and hold it back.

    Return the findings, and the file in ``folder`` that has them as they were found; None: nothing was found.

    Raises:
        OSError: the server does not answer, or refuses.
    """
    look = _Look(api, own)
    # What makes runs first, then the runs.
    for step in (look.automations, look.result_storage, look.pools, look.deployments, look.runs, look.rest):
        step()
    if not look.findings:
        return [], None
    path = folder / f"held-back-{datetime.now(UTC):%Y%m%dT%H%M%S}.json"
    write_durably(path, json.dumps(look.originals, indent=1, default=str))
    return look.findings, path


def report(findings: Sequence[Finding], path: Path) -> list[str]:
    """Return lines for a person. Names are text from others: only their printable characters reach the terminal."""
    lines = [
        "Prefect's database has been open to others, without credentials. It has items that fedbench did not make. If "
        "you did not make them either, remove them, and check what else others could have done as you:"
    ]
    for kind in dict.fromkeys(finding.kind for finding in findings):
        of_kind = [finding for finding in findings if finding.kind == kind]
        lines += [f"  {finding.line()}" for finding in of_kind[:MOST_NAMED]]
        if len(of_kind) > MOST_NAMED:
            lines.append(f"  {len(of_kind) - MOST_NAMED} more of kind {kind}")
    return [*lines, f"All of it as it was found: {path}"]


class _Look:
    """One search of a server."""

    def __init__(self, api: PrefectJson, own: Own) -> None:
        self._api = api
        self._own = own
        self.findings: list[Finding] = []
        self.originals: list[dict[str, Any]] = []
        self._names: dict[str, str] = {}
        self._ours: set[str] = set()

    def _found(self, kind: str, name: object, original: Any, done: str = "", remove: str = "") -> None:
        self.findings.append(Finding(kind, printable(name), done, remove and f"remove: {remove}"))
        self.originals.append({"kind": kind, "done": done, "found": original})

    def automations(self) -> None:
        for item in self._api.all("automations"):
            known = self._own.automations.get(item["name"])
            if known is not None and {action["type"] for action in item["actions"]} <= known:
                continue
            self._api.ask("PATCH", f"/automations/{item['id']}", {"enabled": False})
            self._found("automation", item["name"], item, "disabled", f"prefect automation delete --id {item['id']}")

    def result_storage(self) -> None:
        found = self._api.ask("GET", "/admin/storage")
        if found["default_result_storage_block_id"] is not None:
            self._api.ask("DELETE", "/admin/storage")
            self._found("result storage", found["default_result_storage_block_id"], found, "switched off")

    def pools(self) -> None:
        for item in self._api.all("work_pools"):
            template = self._own.pools.get(item["name"])
            if template is None:
                self._found("work pool", item["name"], item, "", f"prefect work-pool delete {quoted(item['name'])}")
            elif item["base_job_template"] != template:
                path = f"/work_pools/{quote(item['name'], safe='')}"
                self._api.ask("PATCH", path, {"base_job_template": template})
                if _without_descriptions(item["base_job_template"]) != _without_descriptions(template):
                    self._found("work pool", item["name"], item, "its job template was put back")

    def deployments(self) -> None:
        flows = {item["id"]: item["name"] for item in self._api.all("flows")}
        entrypoints = set(self._own.deployments.values())
        for item in self._api.all("deployments"):
            name = f"{flows.get(item['flow_id'])}/{item['name']}"
            self._names[item["id"]] = name
            wanted = self._own.deployments.get(name)
            if wanted is None and item["entrypoint"] in entrypoints:
                wanted = item["entrypoint"]  # a deployment that the user made from a file
            path = f"/deployments/{item['id']}"
            if wanted is None:
                self._api.ask("PATCH", path, {"paused": True})
                remove = f"prefect deployment delete --id {item['id']}"
                self._found("deployment", name, item, "paused", remove)
                continue
            self._ours.add(item["id"])
            if changed := self._changed(item, wanted):
                self._api.ask("PATCH", path, self._put_back(item, wanted))
                self._found("deployment", name, item, f"put back: {', '.join(changed)}")
            for schedule in item["schedules"]:
                if schedule["active"] and (schedule["slug"] != self._own.schedule or schedule["parameters"]):
                    self._api.ask("PATCH", f"{path}/schedules/{schedule['id']}", {"active": False})
                    self._found("schedule of", name, schedule, "switched off")

    def _changed(self, item: Mapping[str, Any], entrypoint: str) -> list[str]:
        """Return the fields that decide which code a deployment runs and that differ from fedbench's."""
        expected = {"entrypoint": entrypoint, "pull_steps": None, "storage_document_id": None}
        changed = [field for field, value in expected.items() if (item[field] or None) != value]
        return changed + [f"job_variables.{name}" for name in self._foreign_variables(item["job_variables"])]

    def _foreign_variables(self, variables: Mapping[str, Any] | None) -> list[str]:
        given = variables or {}
        return [name for name in CODE_VARIABLES if given.get(name) not in (None, {}, self._own.job_variables.get(name))]

    def _put_back(self, item: Mapping[str, Any], entrypoint: str) -> dict[str, Any]:
        kept = {name: value for name, value in (item["job_variables"] or {}).items() if name not in CODE_VARIABLES}
        return {
            "entrypoint": entrypoint,
            "pull_steps": [],
            "storage_document_id": None,
            "job_variables": {**kept, **self._own.job_variables},
        }

    def runs(self) -> None:
        """Cancel runs that may start. One without deployment and work pool is a command line's: no worker takes it."""
        for item in list(self._api.all("flow_runs", flow_runs={"state": {"type": {"any_": list(OPEN)}}})):
            if item["deployment_id"] is None and item["work_queue_id"] is None:
                continue
            ours = item["deployment_id"] in self._ours and not self._foreign_variables(item["job_variables"])
            if ours and item["state_type"] not in WAITING:
                continue
            if ours and item["auto_scheduled"]:
                self._api.ask("DELETE", f"/flow_runs/{item['id']}")  # its schedule makes it again
                continue
            state = {"type": "CANCELLED", "name": "Cancelled", "message": _CANCELLED}
            self._api.ask("POST", f"/flow_runs/{item['id']}/set_state", {"state": state, "force": True})
            of = self._names.get(item["deployment_id"], "no deployment")
            self._found("run", f"{item['name']} of {of}", item, "cancelled")

    def rest(self) -> None:
        """Report what does nothing by itself, blocks and variables, and remove the records of ``fedbench deploy``."""
        for item in self._api.all("block_documents", include_secrets=False):
            name = f"{(item.get('block_type') or {}).get('slug')}/{item.get('name') or item['id']}"
            self._found("block", name, item, "", f"prefect block delete --id {item['id']}")
        for item in list(self._api.all("variables")):
            if item["name"].startswith(self._own.records):
                self._api.ask("DELETE", f"/variables/{item['id']}")
                self.originals.append({"kind": "variable", "done": "removed", "found": item})
                continue
            self._found("variable", item["name"], item, "", f"prefect variable delete {quoted(item['name'])}")


def _without_descriptions(template: Any) -> Any:
    """Return a job template without the descriptions of its variables, which another version of fedbench may word anew.

    A template of another form is returned as it is.
    """
    try:
        variables = template["variables"]
        fields = {
            name: {key: value for key, value in field.items() if key != "description"}
            for name, field in variables["properties"].items()
        }
        return {**template, "variables": {**variables, "properties": fields}}
    except (AttributeError, KeyError, TypeError):
        return template


def quoted(name: str) -> str:
    """Return ``name`` for a shell. For a long or unprintable name, point to the file instead."""
    return shlex.quote(name) if printable(name) == name else "(see the file)"
