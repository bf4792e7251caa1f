"""The command ``fedbench`` in this process."""

from __future__ import annotations

import functools

import typer.main
import typer.testing
from typer.testing import CliRunner, Result

from flows.cli.app import app

# Build the tree of commands once: typer's runner would build it again for each call, which takes longer than most.
typer.testing._get_command = functools.cache(typer.main.get_command)


def fedbench(*words: object) -> Result:
    """Run ``fedbench`` with these arguments, each converted to text. Return the result."""
    return CliRunner().invoke(app, [str(word) for word in words])
