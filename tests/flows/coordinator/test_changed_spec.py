"""One field of a deployment's specification changed for one run: what Prefect's check and the flow accept and name."""

from __future__ import annotations

from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, validate

from flows.coordinator.changed_spec import changed_spec
from flows.federation import federation
from tasks.errors import SpecError
from tasks.spec.federation import FederationSpec, flatten, with_fields
from tasks.spec.presets import PRESETS, preset

SPEC = preset("smoke")


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """Return the schema of the two parameters alone: checking the specification too takes most of a second."""
    whole = parameter_schema(federation).model_dump(exclude_unset=True)
    names = ("max_rounds", "overrides")
    return {"type": "object", "properties": {name: whole["properties"][name] for name in names}}


def test_a_form_has_words_for_the_parameters_and_says_where_to_change_a_field() -> None:
    properties = parameter_schema(federation).model_dump(exclude_unset=True)["properties"]
    by_position = sorted(properties, key=lambda name: int(properties[name]["position"]))
    assert {name: properties[name]["title"] for name in by_position} == {
        "name": "Name",
        "spec": "Specification",
        "max_rounds": "Max rounds, from a shell",
        "overrides": "Other fields, from a shell",
    }
    assert by_position == ["name", "spec", "max_rounds", "overrides"]
    for name in ("max_rounds", "overrides"):
        assert f"-p {name}=" in properties[name]["description"]
        assert "of the specification" in properties[name]["description"]


def test_fields_are_changed_by_their_dotted_names() -> None:
    assert changed_spec(SPEC, None, None) is SPEC
    assert changed_spec(SPEC, None, {}) is SPEC
    assert changed_spec(SPEC, 1, None) == with_fields(SPEC, {"max_rounds": 1}, source="x")
    fields = {"training.batch_size": 2, "strategy.kind": "fedadam", "strategy.server_lr": 0.03}
    assert changed_spec(SPEC, 9, fields) == with_fields(SPEC, {**fields, "max_rounds": 9}, source="x")


@pytest.mark.parametrize(
    ("rounds", "fields", "says"),
    [
        (None, {"training.epochs": 2}, r"^overrides: training\.epochs: no such field; expected one of: .*local_epochs"),
        (None, {"training.local_epochs": "two"}, r"^overrides: training\.local_epochs: expected a whole number"),
        (0, None, r"^parameters: max_rounds: expected at least 1, found 0"),
        (3, {"max_rounds": 4}, r"^overrides: max_rounds: expected none beside the parameter max_rounds \(3\), found 4"),
    ],
)
def test_a_wrong_field_is_named(rounds: int | None, fields: dict[str, Any] | None, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        changed_spec(SPEC, rounds, fields)


def test_prefect_accepts_every_field_of_every_preset(schema: dict[str, Any]) -> None:
    for name in PRESETS:
        document = preset(name).model_dump(mode="json")
        fields = flatten(document) | {key: value for key, value in document.items() if isinstance(value, dict)}
        validate({"overrides": fields}, schema, raise_on_error=True)
    others: tuple[Any, ...] = ({"data.label_space.3": ["car"]}, {"patience": None}, {"fine_tuning.epochs": 1}, {}, None)
    for each in others:
        validate({"overrides": each, "max_rounds": None}, schema, raise_on_error=True)
    validate({"overrides": {"strategy.kind": "fedadam", "strategy.server_lr": 0.1}}, schema, raise_on_error=True)


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"max_rounds": 0}, ("max_rounds", "0 is less than the minimum of 1")),
        ({"overrides": {"training.epochs": 2}}, ("overrides", "'training.epochs' is not valid")),
        ({"overrides": {"training.local_epochs": "two"}}, ("training.local_epochs", "'two' is not of type 'integer'")),
        ({"overrides": {"training.local_epochs": 0}}, ("training.local_epochs", "0 is less than the minimum of 1")),
        ({"overrides": {"detector.kind": "yolov9"}}, ("detector.kind", "'yolov9' is not one of")),
        ({"overrides": {"seed": None}}, ("seed", "None is not of type 'integer'")),
    ],
)
def test_prefect_refuses_a_wrong_field_before_it_makes_a_run(
    schema: dict[str, Any], parameters: dict[str, Any], says: tuple[str, ...]
) -> None:
    with pytest.raises(ValidationError) as refused:
        validate(parameters, schema, raise_on_error=True)
    assert all(part in str(refused.value) for part in says), refused.value
    assert len(str(refused.value)) < 1000


def test_the_form_draws_no_box_for_each_field(schema: dict[str, Any]) -> None:
    overrides = schema["properties"]["overrides"]
    assert "properties" not in overrides
    assert [choice["type"] for choice in overrides["anyOf"]] == ["object", "null"]
    assert set(FederationSpec.model_fields) <= set(overrides["propertyNames"]["anyOf"][0]["enum"])
