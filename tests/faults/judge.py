"""Check the results of a run in the store against an undisturbed run, and its output against the rules."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# The fields of a round's record that must be the same in every run of the specification.
FIGURES = ("round", "spec_digest", "metrics", "decision", "dropped")
OF_UPDATES = ("client", "seed", "train_size", "train_loss", "model", "shard", "steps")


def bits_of(bucket: Path, name: str) -> list[dict[str, Any]]:
    """Return the digest and figures of each committed round of ``name``, in order."""
    rounds: list[dict[str, Any]] = []
    for path in sorted((bucket / "federations" / name / "rounds").glob("*/round.json")):
        try:
            record = json.loads(path.read_bytes())
            figures = {field: record[field] for field in FIGURES}
            updates = [{field: update.get(field) for field in OF_UPDATES} for update in record["updates"]]
            digests = [record["model"]["sha256"], *(update["weights"]["sha256"] for update in record["updates"])]
            states = [record.get("server"), record.get("shared"), *record.get("states", {}).values()]
            digests += [state["sha256"] for state in states if state is not None]
        except (ValueError, KeyError, TypeError) as error:
            rounds.append({"damaged": f"{path.parent.name}/round.json: {error!r}"})
            continue
        rounds.append({**figures, "updates": updates, "digests": digests})
    return rounds


def difference(found: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the first difference. None: the bits are the same."""
    if len(found) != len(expected):
        return f"expected {len(expected)} committed rounds, found {len(found)}"
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        for field in other:
            if one.get(field) != other[field]:
                return f"round {number}: {field}: expected {other[field]}, found {one.get(field, one)}"[:600]
    return None


def damaged_globals(bucket: Path, name: str, spared: str | None) -> str | None:
    """Return the first stored global model that differs from its record. None: there is none.

    The last round's model must exist. spared: a model that is not checked, because the fault itself damaged it.
    """
    folder = bucket / "federations" / name / "rounds"
    last = max(folder.glob("*/round.json"), default=None)
    for path in sorted(folder.glob("*/round.json")):
        model = json.loads(path.read_bytes())["model"]
        weights = path.with_name("global.safetensors")
        if not weights.exists():
            if path == last:
                return f"{path.parent.name}: the last global is missing"
        elif hashlib.sha256(weights.read_bytes()).hexdigest() != model["sha256"] and str(weights) != spared:
            return f"{path.parent.name}: the global in the store is not the one of the record"
    return None


def faults_of_output(text: str, status: int | None, *, killed: bool) -> str | None:
    """Return what is wrong with the end of a command. None: nothing.

    A command must not hang or print a traceback. If it fails, it must print one line with the reason, and nothing after
    it. killed: the fault itself ended the command, so it could print nothing.
    """
    if status is None:
        return "it hangs"
    if "Traceback (most recent call last)" in text:
        return "a traceback in its output"
    if status == 0 or killed:
        return None
    reasons = re.findall(r"^(?:failed|error): .*$", text, re.MULTILINE)
    if len(reasons) != 1:
        return f"status {status} with {len(reasons)} lines that say why; expected one"
    after = text[text.rindex(reasons[0]) + len(reasons[0]) :].strip()
    if after:
        return f"status {status}, and the reason has more lines: {after[:300]!r}"
    return None
