"""Hundreds of bad answers, objects and records of one silo: the other clients count, and the coordinator goes on.

Each case is a valid answer with a few changes: to its JSON, to the JSON's bytes, to the arrays of the object that it
names, or to that object's bytes. Random bytes would all fail the first check.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from tasks.spec.turns import AnyRequest
from tests.tasks.foreign_answers import in_place
from tests.tasks.foreign_phases import PHASES
from tests.tasks.foreign_silos import CLIENTS, FOREIGN, SPEC, Body, Content, Silos, memory_watched

# Without retries: other tests cover them, and they would double the time.
ONCE = SPEC.model_copy(update={"participation": SPEC.participation.model_copy(update={"turn_retries": 0})})

NASTY: list[Any] = [
    None, True, False, -1, 0, 1, 7, 2**31, 2**53, 2**63, 2**64 - 1, 2**64, 10**8, 10**400, -0.5, 1e-320, 1e38, 1e308,
    float("nan"), float("inf"), "", "1", "2", "3", "9", "../1", "a" * 64, "f" * 64, "x" * 20_000, "\ud800", "\0\x1b[2J",
    "null", "NaN", "1e5", "é😀", [], {}, [[]], [1, "1"], {"client": "1"}, {"": {}}, [None] * 3, [{}] * 40,
    dict.fromkeys(map(str, range(50)), 1), [1] * 50_000,
]  # fmt: skip
values = st.sampled_from(NASTY) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
positions = st.integers(0, 2**16)
byte_steps = st.lists(st.tuples(positions, st.integers(0, 4)), min_size=1, max_size=2)
STEPS: dict[str, st.SearchStrategy[Any]] = {
    "json": st.lists(st.tuples(positions, st.integers(0, 4), values), min_size=1, max_size=2),
    "arrays": st.lists(st.tuples(positions, st.integers(0, 11)), min_size=1, max_size=2),
    "object": byte_steps,
    "instead": st.sampled_from([400_000_000, b"", bytes(8), b"\xff" * 100, b"\0\0\0\2" + bytes(4) + b"{" * 99]),
    "answer": byte_steps,
    "whole": st.sampled_from([300_000_000, b"[" * 300_000, b"{}" * 300_000, b"null", b"", b'{"a":' * 200_000]),
}


def places(document: Any) -> list[tuple[Any, Any]]:
    """Return (holder, key) of each value in a document."""
    found: list[tuple[Any, Any]] = []
    left = [document]
    while left:
        item = left.pop()
        keys = list(item) if isinstance(item, dict) else range(len(item)) if len(item) < 50 else ()
        for key in keys:
            found.append((item, key))
            if isinstance(item[key], dict | list):
                left.append(item[key])
    return found


def changed_json(document: Any, steps: Sequence[tuple[int, int, Any]]) -> Any:
    for position, action, value in steps:
        found = places(document)
        if not found:
            break
        holder, key = found[position % len(found)]
        value = copy.deepcopy(value)  # all cases share the values of NASTY
        if action <= 1:
            holder[key] = value
        elif action == 2:
            del holder[key]
        elif isinstance(holder, list):
            holder.append(json.loads(json.dumps(holder[key])) if action == 3 else value)
        elif action == 3 and isinstance(value, str):
            holder[value] = holder[key]
        else:
            holder["added"] = value
    return document


def changed_bytes(content: bytes, steps: Sequence[tuple[int, int]]) -> bytes:
    for position, action in steps:
        at = position % (len(content) + 1)
        if action == 0:
            content = content[:at]
        elif action == 1:
            content = content[:at] + bytes([position % 256]) + content[at + 1 :]
        elif action == 2:
            content = content[:at] + content[at // 2 :]
        elif action == 3:
            content = content[:at] + b"\xff" * 8 + content[at:]
        else:
            # Hits the header's length in safetensors, and the first character of JSON.
            content = bytes([position % 256]) + content[1:]
    return content


FILL = [0, 1, -1, 7, 2**62, float("nan"), float("inf"), -3e38]
TYPES = [np.float64, np.int32, np.uint8, np.float16]


def changed_array(array: np.ndarray, action: int, number: int) -> np.ndarray:
    with np.errstate(all="ignore"):
        filled = np.full(array.shape, FILL[number % 8]).astype(array.dtype)
    if action == 0:
        return filled
    if action == 1:
        return np.concatenate([array, filled])
    if action == 2:
        return array[:-1]
    if action == 3:
        return np.repeat(array[:1], 3000 + number % 3, 0)
    if action == 4:
        return array.astype(TYPES[number % 4])
    if action == 5:
        return array.reshape(1, *array.shape)
    if action == 6:
        return np.array(array.reshape(-1)[0]) if array.size else array
    if action == 7:
        return array[::-1]
    if action == 8:
        return np.zeros((0, 2**40), array.dtype)
    return np.concatenate([filled[:1], array[1:]])


def changed_arrays(content: bytes, steps: Sequence[tuple[int, int]]) -> bytes:
    arrays = load(content)
    for position, action in steps:
        names = sorted(arrays)
        name = names[position % len(names)] if names else "more"
        array = np.atleast_1d(arrays.get(name, np.zeros(3, np.float32)))
        if action == 10:
            arrays.pop(name, None)
        elif action == 11:
            arrays["more"] = array
        else:
            arrays[name] = np.ascontiguousarray(changed_array(array, action, position // 16))
    return save(arrays)


KINDS = ("json", "json", "json", "arrays", "arrays", "object", "instead", "answer", "whole")


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Draw a phase and changes of one kind, sometimes of two. With more, the first change would hide the others."""
    phase = draw(st.sampled_from(sorted(PHASES)))
    kinds = {draw(st.sampled_from(KINDS)) for _ in range(draw(st.sampled_from((1, 1, 2))))}
    return phase, {kind: draw(STEPS[kind]) for kind in sorted(kinds)}


def tampered(silos: Silos, phase: str, changes: dict[str, Any], request: AnyRequest, document: Any) -> Content:
    if "whole" in changes:
        content: Content = changes["whole"]
        return content
    layout = silos.handles.layout
    keys = {"request_update": layout.update_weights(3, FOREIGN), "stored": layout.update_weights(3, FOREIGN)}
    if phase in ("stop_and_eval", "sheet"):
        keys[phase] = document["reply"]["detections"]["key"]
    if phase in keys and changes.keys() & {"arrays", "object", "instead"}:
        found = silos.store.client.objects[keys[phase]]
        assert isinstance(found, bytes)
        if phase != "sheet":
            found = changed_arrays(found, changes.get("arrays", ()))
        content = changes.get("instead", changed_bytes(found, changes.get("object", ())))
        if phase == "stored":
            silos.store.client.objects[keys[phase]] = content
        else:
            answer = in_place(content)(silos, request, document)
            assert isinstance(answer, bytes)
            document = json.loads(answer)
    text = json.dumps(changed_json(document, changes.get("json", ()))).encode()
    return changed_bytes(text, changes.get("answer", ()))


@pytest.mark.parametrize("cases_run", [1000, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_answer_of_one_silo_harms_another_or_ends_the_federation(silos: Silos, cases_run: int) -> None:
    logging.disable(logging.WARNING)  # there is one for each of hundreds of dropped clients
    seen: dict[tuple[str, bool], int] = {}

    @settings(
        max_examples=cases_run,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases())
    def run(case: tuple[str, dict[str, Any]]) -> None:
        phase, changes = case
        Body.read_bytes = 0
        silos.begin(lambda request, document: tampered(silos, phase, changes, request, document))
        outcome = PHASES[phase](silos, ONCE)
        assert [client for client in outcome.counted if client != FOREIGN] == ["1", "3"]
        dropped = [item.client for item in outcome.dropped]
        assert sorted({*dropped, *outcome.counted}) == list(CLIENTS)
        assert set(dropped) == ({FOREIGN} - set(outcome.counted))
        for record in [*outcome.dropped, *outcome.records]:
            # The record can be written to the store and read again.
            silos.store.put_json("record", record.model_dump(mode="json"))
            assert type(record).model_validate(silos.store.get_json("record")) == record
        assert all(len(item.reason) <= 2000 for item in outcome.dropped)
        assert Body.read_bytes < 3_000_000
        seen[phase, FOREIGN in outcome.counted] = seen.get((phase, FOREIGN in outcome.counted), 0) + 1

    for phase in PHASES:
        silos.begin()
        assert PHASES[phase](silos, ONCE).counted == list(CLIENTS)
    try:
        with memory_watched():
            run()
    finally:
        logging.disable(logging.NOTSET)
    # The cases get past the first check: in each phase, some answers count and some do not.
    assert all(seen.get((phase, counted), 0) >= 1 for phase in PHASES for counted in (True, False)), seen
