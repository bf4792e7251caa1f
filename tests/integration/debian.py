"""Programs of Debian's packages that single tests need."""

from __future__ import annotations

import shutil

import pytest


def program(name: str, package: str) -> str:
    """Return the path of a program. Skip the test if it is not installed, with the command that installs it."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}: apt-get install --no-install-recommends {package}")
    return found
