"""Only three files use private parts of Prefect, because any version of Prefect may change those."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ALLOWED = {
    "infra/orchestrator/prefect_private.py",
    "infra/orchestrator/stored_results.py",
    "infra/servers/prefect_server_private.py",
}


def private_uses(source: str) -> Iterator[str]:
    """Yield the private parts of Prefect that ``source`` imports, names in a text, or reads as an attribute."""
    tree, of_prefect = ast.parse(source), {"prefect"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if is_private(alias.name):
                    yield alias.name
                elif alias.name.split(".")[0] == "prefect":
                    of_prefect.add((alias.asname or alias.name).split(".")[0])
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "prefect":
            for alias in node.names:
                if is_private(f"{node.module}.{alias.name}"):
                    yield f"{node.module}.{alias.name}"
                of_prefect.add(alias.asname or alias.name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and is_private(node.value):
            yield node.value
    for node in ast.walk(tree):
        if (isinstance(node, ast.Attribute) and is_underscored(node.attr) and root_of(node.value) in of_prefect) or (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("getattr", "setattr")
            and root_of(node.args[0]) in of_prefect
            and isinstance(node.args[1], ast.Constant)
            and is_underscored(str(node.args[1].value))
        ):
            yield ast.unparse(node)


def is_private(name: str) -> bool:
    """Return whether the dotted ``name`` is private: it has a private part, or is of Prefect's server, no library."""
    parts = name.split(".")
    if parts[0] != "prefect" or not all(part.isidentifier() for part in parts):
        return False
    return parts[1:2] == ["server"] or any(map(is_underscored, parts))


def is_underscored(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def root_of(node: ast.expr) -> str | None:
    """Return the name that a chain of attributes and calls begins with."""
    while isinstance(node, ast.Attribute | ast.Call):
        node = node.value if isinstance(node, ast.Attribute) else node.func
    return node.id if isinstance(node, ast.Name) else None


def test_only_named_files_use_private_parts() -> None:
    paths = [path for folder in ("flows", "infra", "tasks") for path in (ROOT / folder).rglob("*.py")]
    uses = {str(path.relative_to(ROOT)): list(private_uses(path.read_text(encoding="utf-8"))) for path in paths}
    assert len(uses) > 250
    assert {name: found for name, found in uses.items() if found and name not in ALLOWED} == {}
    assert {name for name, found in uses.items() if found} == ALLOWED, "remove a file that no longer uses any"


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_each_file_names_the_version_that_it_was_read_against(name: str) -> None:
    documented = ast.get_docstring(ast.parse((ROOT / name).read_text(encoding="utf-8"))) or ""
    assert "read against Prefect 3." in " ".join(documented.split())


@pytest.mark.parametrize(
    "source",
    [
        "import prefect._internal.metrics",
        "from prefect._internal import result_records",
        "from prefect.runner._hook_runner import HookRunner",
        "from prefect.results import _private",
        "from prefect.server.api import server",
        "def late():\n    from prefect.server import models",
        "import prefect.results\nprefect.results.ResultStore._read",
        "from prefect.client.orchestration import get_client as client\nclient()._client",
        "import prefect\ngetattr(prefect, '_internal')",
        "import logging\nlogging.getLogger('prefect._internal')",
    ],
)
def test_uses_of_private_parts_are_found(source: str) -> None:
    assert len(list(private_uses(source))) == 1


def test_public_names_and_our_own_are_not_private_parts() -> None:
    source = "from prefect import flow\nfrom prefect.events import Event\nself._flow\nflow.name\nflow.__doc__"
    assert list(private_uses(source)) == []
