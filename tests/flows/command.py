"""The command ``fedbench`` in this process."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from flows.cli.app import app


def fedbench(*words: object) -> Result:
    """Run ``fedbench`` with these arguments, each converted to text. Return the result."""
    return CliRunner().invoke(app, [str(word) for word in words])
