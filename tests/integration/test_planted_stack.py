"""`fedbench up` runs nothing that others planted while the home's Prefect server required no credentials."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest

from infra.orchestrator.plain_api import PrefectJson
from infra.servers.credentials import basic_auth
from infra.servers.exposed import LIST
from infra.servers.prefect_server import PrefectService
from tests.integration.attacks import REFUSED, Attack, Attacker, assert_held_back, attacker, found_in, plant_in_database
from tests.integration.stacks import PATIENCE, RunningStack, running_stack
from tests.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.slow]

RESIDENT = {"federation": "none", "session": "none", "pool": "gpu", "number": 1}


@dataclass(frozen=True)
class Up:
    """A stack on a home in which the attacker ``other`` planted ``made``. The attacker now has its password too."""

    stack: RunningStack
    other: Attacker
    made: dict[str, str]

    def state(self, run: UUID) -> dict[str, Any]:
        found: dict[str, Any] = self.other.api.ask("GET", f"/flow_runs/{run}")["state"]
        return found


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    home, folder = tmp_path_factory.mktemp("exposed"), tmp_path_factory.mktemp("others")
    service = PrefectService(home)
    service.ensure()
    try:
        made = plant_in_database(attacker(PrefectJson(service.address, service.health_headers()), folder))
    finally:
        service.stop()
    (home / "prefect" / LIST).unlink(missing_ok=True)  # earlier versions had no such list and required no credentials
    with running_stack(home) as stack:
        api = PrefectJson(stack.variables["PREFECT_API_URL"], basic_auth(stack.keys.prefect_auth))
        other = attacker(api, folder, "again")
        yield Up(stack, other, made)


def test_up_prints_and_disables_all_plants(up: Up) -> None:
    assert [words for words in found_in(up.made) if words not in up.stack.output] == [], up.stack.output
    assert "\x1b" not in up.stack.output
    assert_held_back(up.other, up.made)


def test_up_does_so_only_once(up: Up) -> None:
    result = up.stack.home.run("up", timeout=PATIENCE)
    assert result.returncode == 0, result.stdout
    assert "planted" not in result.stdout


@pytest.mark.parametrize(
    ("deployment", "kind"), [("clean-up/store", "block"), ("resident/gpu", "json")], ids=["coordinator", "slot"]
)
def test_a_run_of_a_worker_that_is_set_to_completed_fails(up: Up, deployment: str, kind: str) -> None:
    with Attack(up.other, kind) as attack:
        run = up.stack.start(deployment, {} if deployment == "clean-up/store" else RESIDENT)
        assert eventually(lambda: up.state(run)["type"] == "FAILED", 120), up.state(run)
    assert str(run) in attack.hit
    assert REFUSED in up.state(run)["message"]
    assert up.other.ran() == []


def test_workers_complete_an_untouched_run_and_run_no_plant(up: Up) -> None:
    run = up.stack.start("clean-up/store", {})
    assert eventually(lambda: up.state(run)["type"] == "COMPLETED", 120), up.state(run)
    assert up.other.ran() == []
