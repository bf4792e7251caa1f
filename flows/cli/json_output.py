"""Print a document as JSON: alone on standard output, and valid for every reader."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from flows.cli.shared import out

PrintJson = Annotated[
    bool, typer.Option("--json", help="Print JSON alone, with the fields that docs/json.md lists, in place of tables.")
]


def print_json(document: Mapping[str, Any]) -> None:
    """Print ``document`` on standard output. Numbers that are not finite, which JSON does not have, become null."""
    out.print(json_text(document), soft_wrap=True, highlight=False)


def json_text(document: Mapping[str, Any]) -> str:
    """Return ``document`` as JSON in ASCII, so that no text in it can command a terminal."""
    return json.dumps(_finite(document), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
