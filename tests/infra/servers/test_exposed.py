"""Databases count as guarded when only servers with credentials have opened them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from infra.orchestrator.plain_api import PrefectJson
from infra.servers.exposed import LIST, Finding, Own, hold_back, is_guarded, note_guarded, report
from infra.servers.prefect_server import PrefectService

POSTGRESQL = "postgresql+asyncpg://user:hidden@db/prefect"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "prefect").mkdir()
    return tmp_path


def test_a_new_database_is_guarded_from_its_first_server_on(home: Path) -> None:
    assert not is_guarded(home, None)
    PrefectService(home, auth="fedbench:secret").prepare()
    assert is_guarded(home, None)
    (home / "prefect" / "prefect.db").touch()
    PrefectService(home, auth="fedbench:secret").prepare()
    assert is_guarded(home, None)


def test_a_database_of_an_earlier_version_is_guarded_only_after_a_check(home: Path) -> None:
    (home / "prefect" / "prefect.db").touch()
    PrefectService(home, auth="fedbench:secret").prepare()
    assert not is_guarded(home, None)
    note_guarded(home, None)
    assert is_guarded(home, None)


def test_each_database_is_listed_by_itself_and_without_its_password(home: Path) -> None:
    PrefectService(home, auth="fedbench:secret", database_url=POSTGRESQL).prepare()
    assert not is_guarded(home, POSTGRESQL)  # it may not be new
    note_guarded(home, POSTGRESQL)
    assert is_guarded(home, POSTGRESQL)
    assert not is_guarded(home, None)
    (written,) = (home / "prefect").iterdir()
    assert "hidden" not in written.read_text()
    assert written.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", ["", "{}", "[1, {}]", '{"SQLite": true}'])
def test_a_damaged_list_guards_nothing(home: Path, content: str) -> None:
    (home / "prefect" / LIST).write_text(content)
    assert not is_guarded(home, None)


def test_a_flood_of_plants_is_counted_and_not_printed(tmp_path: Path) -> None:
    lines = report([Finding("block", f"slack/{number}", "") for number in range(500)], tmp_path / "all.json")
    assert len(lines) == 13
    assert lines[-2] == "  490 more of kind block"


class _PoolsServer:
    """Answers as a Prefect server that has nothing but one work pool."""

    def __init__(self, template: Any) -> None:
        self.pool = {"name": "gpu", "base_job_template": template}

    def all(self, kind: str, **filters: Any) -> list[dict[str, Any]]:
        return [dict(self.pool)] if kind == "work_pools" else []

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        if method == "PATCH":
            self.pool |= body
        return {"default_result_storage_block_id": None}


class _VariablesServer(_PoolsServer):
    """Answers as a Prefect server that has nothing but variables."""

    def __init__(self, *names: str) -> None:
        self.variables = [{"id": name, "name": name} for name in names]

    def all(self, kind: str, **filters: Any) -> list[dict[str, Any]]:
        return list(self.variables) if kind == "variables" else []

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        if method == "DELETE":
            self.variables = [item for item in self.variables if path != f"/variables/{item['id']}"]
        return {"default_result_storage_block_id": None}


def test_records_of_deploy_are_removed_and_other_variables_reported(tmp_path: Path) -> None:
    own = Own(
        deployments={}, job_variables={}, schedule="fedbench", pools={}, automations={}, records="fedbench-deployed-"
    )
    server = _VariablesServer("fedbench-deployed-suite-cpu-1", "mine", "fedbench-deployed-suite-cpu-2")
    findings, path = hold_back(cast(PrefectJson, server), own, tmp_path)
    assert [item["name"] for item in server.variables] == ["mine"]
    assert [finding.name for finding in findings] == ["mine"]
    assert path is not None
    assert [item["found"]["name"] for item in json.loads(path.read_text())] == [
        "fedbench-deployed-suite-cpu-1",
        "mine",
        "fedbench-deployed-suite-cpu-2",
    ]
    assert hold_back(cast(PrefectJson, _VariablesServer("fedbench-deployed-x")), own, tmp_path) == ([], None)


def _template(**field: Any) -> dict[str, Any]:
    return {
        "job_configuration": {"command": "{{ command }}"},
        "variables": {"type": "object", "properties": {"command": {"title": "Command", **field}}},
    }


@pytest.mark.parametrize(
    ("found", "is_reported"),
    [
        (_template(description="Not used."), False),
        (_template(description="Never used.", default="rm -rf ~"), True),
        ({**_template(description="Never used."), "job_configuration": {"command": "rm -rf ~"}}, True),
        ({"variables": {"properties": {"command": None}}}, True),
        ({}, True),
    ],
    ids=["other words", "default", "configuration", "other form", "empty"],
)
def test_a_job_template_in_other_words_is_put_back_without_alarm(
    found: dict[str, Any], is_reported: bool, tmp_path: Path
) -> None:
    """An older fedbench had other descriptions of the same variables."""
    ours = _template(description="Never used.")
    own = Own(
        deployments={},
        job_variables={},
        schedule="fedbench",
        pools={"gpu": ours},
        automations={},
        records="fedbench-deployed-",
    )
    server = _PoolsServer(json.loads(json.dumps(found)))
    findings, path = hold_back(cast(PrefectJson, server), own, tmp_path)
    assert server.pool["base_job_template"] == ours
    assert [finding.done for finding in findings] == ["its job template was put back"] * is_reported
    assert (path is not None) == is_reported


def test_every_module_that_starts_a_server_has_its_database_checked() -> None:
    sources = {path: path.read_text(encoding="utf-8") for path in Path("flows").rglob("*.py")}
    starters = {str(path) for path, text in sources.items() if ".prefect_environment()" in text}
    assert starters >= {"flows/coordinator/session.py", "flows/commands/pages.py", "flows/cli/cleaning.py"}
    assert [path for path in sorted(starters) if "hold_back_planted(" not in sources[Path(path)]] == []
