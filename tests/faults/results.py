"""The results of faults, each a line of JSON, and a table of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

OUTCOMES = ("itself", "resumed", "failed")


def read_results(path: Path, seed: int | None = None) -> dict[int, dict[str, Any]]:
    """Return the last result of each fault of ``seed``, by number. A line that a kill has cut short is skipped."""
    found: dict[int, dict[str, Any]] = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if seed is None or line["seed"] == seed:
            found[line["number"]] = line
    return found


def append_result(path: Path, line: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def markdown_table(results: Iterable[Mapping[str, Any]]) -> str:
    """Return a table with a row for each kind and place, and one for all."""
    lines = list(results)
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in sorted(lines, key=lambda line: (line["kind"], line["place"])):
        groups.setdefault((line["kind"], line["place"]), []).append(line)
    rows = [(f"`{kind}`", place, found) for (kind, place), found in groups.items()]
    text = [
        "| fault | turns | runs | ended by itself | after `resume` | failures | median |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for kind, place, found in [*rows, ("all", "", lines)]:
        if found:
            counts = [sum(line["outcome"] == outcome for line in found) for outcome in OUTCOMES]
            seconds = statistics.median(line["seconds"] for line in found)
            cells = [kind, place, len(found), *counts, f"{seconds:.0f} s"]
            text.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(text)
