"""Start fedbench's processes, after a check that Python finds fedbench's own packages.

Other projects also have packages named ``flows``, ``infra`` or ``tasks``. If another project's package comes first on
Python's search path, an import of ours fails inside that project, or runs its code. The name of this module is
fedbench's alone, and the module lies beside the packages, so it knows where they must be.

Notebooks and scripts import :func:`read_run`, :func:`load_model` and :func:`run` from here (docs/python.md). They are
those of ``flows.from_python``, which loads when one is first used.

The command ``fedbench`` and ``python -m fedbench`` start here. Prefect finds the worker type here, and a worker's warm
process calls :func:`require_own_packages`. Only the standard library is imported before the check.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flows.from_python import load_model, read_run, run

__all__ = ["load_model", "read_run", "run"]

PACKAGES = ("flows", "infra", "tasks")
EXIT_USAGE = 2  # the command line's exit code for wrong usage


class PackageHidden(ImportError):
    """A package or module of another project has the name of one of ours, and Python finds it first."""


def require_own_packages(names: Iterable[str] = PACKAGES) -> None:
    """Check that importing ``names`` gives fedbench's own packages.

    Raises:
        PackageHidden: another package or module is found first, or none at all; the message says what to do.
    """
    root = Path(__file__).resolve().parent
    for name in names:
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise PackageHidden(
                f"expected fedbench's package {name} in {root / name}, found none; install fedbench again"
            )
        found = Path(spec.origin).resolve()
        if found != root / name / "__init__.py":
            hiding = found.parent if found.name == "__init__.py" else found
            raise PackageHidden(
                f"{hiding} hides fedbench's package {name} in {root / name}: Python finds it first. {_way_out(hiding)}"
            )


def _way_out(hiding: Path) -> str:
    folder = hiding.parent
    if folder in _folders(os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        return f"Rename it, or unset PYTHONPATH, which names {folder}"
    if folder in _folders([os.curdir]):
        return "Rename it, or start from another folder"
    return f"Rename it, or take {folder} off Python's search path"


def _folders(paths: Iterable[str]) -> set[Path]:
    return {Path(path).resolve() for path in paths if path}


def main() -> None:
    """Run the command line, or exit with a message if one of our packages is hidden."""
    try:
        require_own_packages()
    except PackageHidden as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    from flows.cli.app import main as command_line

    command_line()


def __getattr__(name: str) -> Any:
    """Return a function for notebooks, or the class ``GpuWorker``, which Prefect loads as a worker type.

    Raises:
        PackageHidden: a package that it imports is hidden. Prefect prints why, and goes on without the worker type.
    """
    if name in __all__:
        require_own_packages()
        import flows.from_python

        return getattr(flows.from_python, name)
    if name != "GpuWorker":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_own_packages(("infra", "tasks"))
    from infra.worker.gpu_worker import GpuWorker

    return GpuWorker


if __name__ == "__main__":
    main()
