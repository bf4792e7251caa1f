"""The versions of Prefect whose private parts fedbench uses. ``pyproject.toml`` asks for the same ones."""

from __future__ import annotations

from importlib.metadata import version

from packaging.specifiers import SpecifierSet

from infra.errors import InfraError

TESTED = SpecifierSet(">=3.9.1,<3.10")


def require_tested(installed: str | None = None) -> None:
    """
    Raises:
        InfraError: ``installed``, or the version of Prefect that is installed here, is not one that fedbench was
            tested with.
    """
    found = version("prefect") if installed is None else installed
    if found not in TESTED:
        raise InfraError(
            f"prefect: fedbench uses private parts of Prefect, tested with {TESTED}, found {found}; install one of "
            "those"
        )
