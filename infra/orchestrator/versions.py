"""The versions of Prefect whose private parts fedbench uses. ``pyproject.toml`` asks for the same ones."""

from __future__ import annotations

from packaging.specifiers import SpecifierSet

TESTED = SpecifierSet(">=3.9.1,<3.10")
