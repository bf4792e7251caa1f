"""Find the modules that a file of Python code needs, so that a registered model carries no others."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path


def needed_files(code: Path, packages: Iterable[Path], modules: Iterable[str] = ()) -> list[Path]:
    """Return those files of ``packages`` that ``code`` imports, directly or through each other, in order.

    Imports inside functions count, those below ``if TYPE_CHECKING`` do not.

    packages: folders of importable packages.
    modules: names of modules that are imported too, though no import statement names them.

    Raises:
        OSError: a file cannot be read.
        SyntaxError: a file has no valid Python code.
    """
    roots = {package.name: package.parent for package in packages}
    found: set[Path] = set()
    waiting = [*modules, *_imported(code)]
    while waiting:
        for file in _files_of(waiting.pop(), roots):
            if file not in found:
                found.add(file)
                waiting += _imported(file)
    return sorted(found)


def _files_of(module: str, roots: Mapping[str, Path]) -> Iterator[Path]:
    """Yield the files of the module and of the packages around it; none for the name of a class, for example."""
    parts = module.split(".")
    if parts[0] not in roots:
        return
    for count in range(1, len(parts) + 1):
        path = roots[parts[0]].joinpath(*parts[:count])
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                yield file


def _imported(file: Path) -> list[str]:
    """Return the names in the import statements of a file: modules, and ``module.name`` for each imported name."""
    names: list[str] = []
    waiting: list[ast.AST] = [ast.parse(file.read_bytes(), str(file))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise SyntaxError(f"{file}, line {node.lineno}: expected an import by the full name of the module")
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            waiting += ast.iter_child_nodes(node)
    return names
