"""The versions of Prefect whose private parts fedbench uses. ``pyproject.toml`` requires the same ones."""

from __future__ import annotations

from importlib.metadata import version

from packaging.specifiers import SpecifierSet

from infra.errors import InfraError

TESTED = SpecifierSet(">=3.9.1,<3.10")


def require_tested(installed: str | None = None) -> None:
    """Check that fedbench was tested with Prefect's version ``installed``, by default the one installed here.

    Raises:
        InfraError: it was not.
    """
    found = version("prefect") if installed is None else installed
    if found not in TESTED:
        raise InfraError(
            f"prefect: fedbench uses private parts of Prefect that were tested with {TESTED}, found {found}; install a "
            "tested version"
        )
