"""Results that Prefect stored are never loaded. Planted ones run their code without the guard, but not with it."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from prefect.client.schemas.objects import State, StateType
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore
from prefect.states import aget_state_exception, get_state_exception

from flows.deployments.table import deployments
from infra.errors import InfraError, StoredResultRefused
from infra.orchestrator.stored_results import accept_stored_results, refuse_stored_results
from infra.orchestrator.versions import TESTED, require_tested
from infra.worker import engine_child
from tests.planted import forget_modules, make_plants

ROOT = Path(__file__).resolve().parents[3]
KINDS = ("pickle", "json", "named", "parsed")


@pytest.fixture(autouse=True)
def _guard_is_left_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(tmp_path / "plants"))
    yield
    refuse_stored_results()
    forget_modules()


def load(plant: dict[str, object], *, kind: StateType = StateType.COMPLETED, sync: bool = False) -> object:
    """Return the result, or the error, of a run whose state is parsed from the API's form."""
    state: State[object] = State.model_validate({"type": kind, "data": plant})
    if kind == StateType.COMPLETED:
        return asyncio.run(state.aresult(retry_result_failure=False))
    return get_state_exception(state) if sync else asyncio.run(aget_state_exception(state))


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_result_runs_nothing(tmp_path: Path, kind: str) -> None:
    plant = make_plants(tmp_path / "plants")[kind]
    accept_stored_results()
    with contextlib.suppress(Exception):  # a plant writes its marker, but need not return a result
        load(plant.data)
    assert plant.marker.exists()
    plant.marker.unlink()
    forget_modules()
    refuse_stored_results()
    with pytest.raises(StoredResultRefused, match="stored result: refused"):
        load(plant.data)
    assert not plant.marker.exists()


def test_a_worker_can_let_its_runs_load_results_again(tmp_path: Path) -> None:
    plant = make_plants(tmp_path / "plants")["pickle"]
    for allowed in (True, False):
        engine_child.guard(stored_results=allowed)
        with contextlib.suppress(Exception):
            load(plant.data)
        assert plant.marker.exists() == allowed
        plant.marker.unlink(missing_ok=True)


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
def test_the_planted_error_of_a_failed_run_runs_nothing(tmp_path: Path, sync: bool) -> None:
    plant = make_plants(tmp_path / "plants")["pickle"]
    with pytest.raises(StoredResultRefused):
        load(plant.data, kind=StateType.FAILED, sync=sync)
    assert not plant.marker.exists()


def test_a_planted_result_with_its_metadata_in_another_file_runs_nothing(tmp_path: Path) -> None:
    plant = make_plants(tmp_path / "plants")["pickle"]
    (tmp_path / "plants" / "metadata").write_text(json.dumps(plant.data))
    storage = LocalFileSystem(basepath=str(tmp_path / "plants"))
    store = ResultStore(result_storage=storage, metadata_storage=storage)
    with pytest.raises(StoredResultRefused):
        store.read("metadata")
    assert not store.exists("metadata")
    assert not asyncio.run(store.aexists("metadata"))


def test_importing_any_deployed_flow_sets_the_guard() -> None:
    """The sources are parsed, because importing all flows takes half a minute."""
    for name in {item.entrypoint.rpartition(".")[0] for item in deployments()}:
        assert guards(name) or any(guards(imported) for imported in imports(name)), name


def body(module: str) -> list[ast.stmt]:
    return ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text()).body


def guards(module: str) -> bool:
    """Return whether importing ``module`` calls the guard."""
    return any(ast.unparse(statement) == "refuse_stored_results()" for statement in body(module))


def imports(module: str) -> list[str]:
    return [
        item.module
        for item in body(module)
        if isinstance(item, ast.ImportFrom) and item.module and item.module.startswith(("flows.", "infra."))
    ]


def test_the_package_asks_for_the_versions_of_prefect_that_it_was_tested_with() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    requirements = [Requirement(line) for line in document["project"]["dependencies"]]
    assert [item.specifier for item in requirements if item.name == "prefect"] == [TESTED]
    require_tested("3.9.1")
    with pytest.raises(InfraError, match=r"tested with .*3\.9\.1.*found 3\.10\.0"):
        require_tested("3.10.0")
