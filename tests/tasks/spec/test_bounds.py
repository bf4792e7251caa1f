"""Every number of a record, a reply and a specification has bounds. Fields that clients fill also limit lengths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

from tasks.errors import SpecError
from tasks.spec import records, suite_records, turns
from tasks.spec.base import LONGEST_TEXT, RECORD_VERSION, Frozen, parse
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import ClientFailure, ClientInfo, ResourceAnswer, UpdateRecord
from tasks.spec.suite import SuiteSpec
from tasks.spec.turns import AnyRequest, TurnReply

# A validator over several fields checks these.
CHECKED = ("/masks/", "/multi_scale/")
LOWER, UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")


def models(module: Any) -> list[type[BaseModel]]:
    found = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Frozen)]
    return [model for model in found if model is not Frozen]


def parts(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every part of a JSON schema that has a type, with its path."""
    if isinstance(schema, dict):
        if "type" in schema and not isinstance(schema["type"], dict):
            yield path, schema
        for name, inner in schema.items():
            if name not in ("default", "examples"):
                yield from parts(inner, f"{path}/{name}")
    elif isinstance(schema, list):
        for number, inner in enumerate(schema):
            yield from parts(inner, f"{path}/{number}")


def unbounded(schema: dict[str, Any]) -> set[str]:
    return {
        path
        for path, part in parts(schema)
        if part["type"] in ("integer", "number")
        and not {"const", "enum"} & part.keys()
        and not any(field in path for field in CHECKED)
        and not (any(name in part for name in LOWER) and any(name in part for name in UPPER))
    }


def endless(schema: dict[str, Any]) -> set[str]:
    """Return the paths of texts, lists and mappings without a limit of their length."""
    found = set()
    for path, part in parts(schema):
        limit = {"string": "maxLength", "array": "maxItems", "object": "maxProperties"}.get(part["type"])
        known = {"const", "enum", "format", "pattern", "properties", "prefixItems"} & part.keys()
        if limit is not None and limit not in part and not known:
            found.add(path)
    return found


@pytest.mark.parametrize("module", [records, turns, suite_records])
def test_every_number_of_a_record_has_bounds(module: Any) -> None:
    assert {model.__name__: unbounded(model.model_json_schema()) for model in models(module)} == {
        model.__name__: set() for model in models(module)
    }


@pytest.mark.parametrize("kind", [FederationSpec, SuiteSpec, AnyRequest])
def test_every_number_of_a_specification_has_bounds(kind: Any) -> None:
    assert unbounded(TypeAdapter(kind).json_schema()) == set()


@pytest.mark.parametrize("model", [ClientInfo, ClientFailure, ResourceAnswer, UpdateRecord, TurnReply])
def test_fields_that_clients_fill_limit_lengths(model: type[BaseModel]) -> None:
    assert endless(model.model_json_schema()) == set()


# --- records beyond the bounds -------------------------------------------------------------------------------------


def update(**fields: Any) -> dict[str, Any]:
    weights = {"key": "k", "sha256": "a" * 64, "bytes": 1}
    return {
        "federation": "f", "round": 1, "client": "1", "spec_digest": "a" * 64, "model": "a" * 64, "seed": 1,
        "weights": weights, "train_size": 1, "train_loss": 1.0, "steps": 1, "seconds": 1.0, "train_seconds": 1.0,
        "bytes_down": 1, "host": "h", "device": "cpu", **fields,
    }  # fmt: skip


@pytest.mark.parametrize("number", [10**10, 10**400, 10**5000, -1], ids=["e10", "e400", "e5000", "negative"])
@pytest.mark.parametrize("field", ["train_size", "seed", "steps", "bytes_down", "seconds", "round"])
def test_a_number_out_of_bounds_is_refused_by_its_field(field: str, number: int) -> None:
    if (field, number) in (("seed", 10**10), ("bytes_down", 10**10), ("seconds", 10**10)):
        return  # within the bounds
    with pytest.raises(SpecError, match=rf"^1\.json: {field}: expected ") as caught:
        parse(UpdateRecord, update(**{field: number}), source="1.json", newest=RECORD_VERSION)
    assert len(str(caught.value)) < 200


def test_losses_must_be_finite_and_may_be_as_large_as_float32() -> None:
    largest = 3.4e38
    record = parse(
        UpdateRecord, update(train_loss=4 * largest, loss_terms={"box": largest}), source="a", newest=RECORD_VERSION
    )
    assert record.train_loss == 4 * largest
    for loss in (1e300, float("inf"), float("nan"), 10**400):
        with pytest.raises(SpecError, match="train_loss: expected "):
            parse(UpdateRecord, update(train_loss=loss), source="a", newest=RECORD_VERSION)


def test_a_long_reason_is_cut() -> None:
    failure = ClientFailure(client="1", phase="wake_up", kind="client-error", reason="x" * 10**6)
    assert failure.reason == "x" * (LONGEST_TEXT - 1) + "…"
    assert ClientFailure(client="1", phase="wake_up", kind="client-error", reason="short").reason == "short"
