"""The form of a specification: all fields are described, unions are plain and at most two deep, digests stay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tasks.errors import SpecError
from tasks.spec.federation import FederationSpec, parse_spec
from tasks.spec.form import title_of
from tasks.spec.presets import PRESETS, preset

SCHEMA = FederationSpec.model_json_schema()


def definition(field: dict[str, Any]) -> dict[str, Any]:
    """Return the definition that a reference points to; ``field`` itself if it is no reference."""
    found: dict[str, Any] = SCHEMA["$defs"][field["$ref"].rpartition("/")[2]] if "$ref" in field else field
    return found


def fields(schema: dict[str, Any], path: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Yield all fields below ``schema``: dotted path with the choices of unions, the field, the number of unions."""
    for name, field in schema.get("properties", {}).items():
        here = f"{path}.{name}".lstrip(".")
        yield here, field, depth
        if "$ref" in field:
            yield from fields(definition(field), here, depth)
        for choice in field.get("anyOf", []):
            if "$ref" in choice:
                yield from fields(definition(choice), f"{here}[{choice['$ref'].rpartition('/')[2]}]", depth + 1)


FIELDS = {path: (field, depth) for path, field, depth in fields(SCHEMA)}


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(item)


def test_the_schema_has_the_expected_fields() -> None:
    assert len(FIELDS) > 120
    for path in (
        "seed",
        "training.optimizer[AdamW].lr",
        "data[Coco].clients[Dirichlet].alpha",
        "strategy[FedAdamSpec].tau",
    ):
        assert path in FIELDS


def test_each_field_and_each_choice_has_a_title_and_a_description() -> None:
    for path, (field, _) in FIELDS.items():
        for text in ("title", "description"):
            assert field.get(text) or definition(field).get(text), (path, text)
    for name, model in SCHEMA["$defs"].items():
        assert model["title"], name
        assert model["description"], name
        assert "``" not in model["description"], name


def test_unions_are_plain_and_at_most_two_deep() -> None:
    assert not [node for node in nodes(SCHEMA) if "oneOf" in node or "discriminator" in node]
    unions = {path: (field["anyOf"], depth) for path, (field, depth) in FIELDS.items() if "anyOf" in field}
    assert {
        "data",
        "detector",
        "training.optimizer",
        "strategy",
        "data[VocFolders].clients",
        "data[Yolo].clients",
        "detector[YoloV3Spec].weights",
    } <= set(unions)
    for path, (choices, depth) in unions.items():
        assert depth <= 1, path
        models = [definition(choice) for choice in choices if "$ref" in choice]
        assert len({model["title"] for model in models}) == len(models)
        if len(models) == 1:  # a group of fields that may be left out: a switch between it and null
            assert choices[1:] == [{"type": "null"}], path
            continue
        for model in models:
            assert model["properties"]["kind"]["enum"] == [model["properties"]["kind"]["const"]]
            assert model["properties"]["kind"]["position"] == 0


def test_the_default_is_the_choice_that_the_form_shows() -> None:
    """The form shows the choice that has the most fields of the value; among equals, the first."""
    seen = 0
    for path, (field, _) in FIELDS.items():
        models = [definition(choice) for choice in field.get("anyOf", []) if "$ref" in choice]
        if len(models) > 1:
            shown = max(models, key=lambda model: len(field["default"].keys() & model["properties"].keys()))
            assert shown["properties"]["kind"]["const"] == field["default"]["kind"], path
            seen += 1
    assert seen >= 8


def test_a_field_that_may_be_left_out_is_plain() -> None:
    assert FIELDS["patience"][0].items() >= {"type": "integer", "minimum": 1}.items()
    assert FIELDS["data[Coco].classes"][0].items() >= {"type": "array", "minItems": 1}.items()
    for path in ("patience", "data[Coco].classes", "training.multi_scale", "participation.shards"):
        assert not {"default", "anyOf"} & FIELDS[path][0].keys(), path
    assert FIELDS["training.clip_norm"][0]["default"] == 10.0  # here null and a missing value differ
    assert {"type": "null"} in FIELDS["training.clip_norm"][0]["anyOf"]


def test_the_defaults_of_all_fields_make_the_default_specification() -> None:
    defaults = {name: field["default"] for name, field in SCHEMA["properties"].items() if "default" in field}
    assert FederationSpec.model_validate(defaults) == FederationSpec()


def test_titles() -> None:
    named = {name: title_of(name, None) for name in ("local_epochs", "nms_iou", "target_map", "lr", "sha256")}
    assert list(named.values()) == ["Local epochs", "NMS IoU", "Target mAP", "Learning rate", "SHA-256"]


@pytest.mark.parametrize(
    ("name", "digest"),
    [("synthetic5", "e6b255e8"), ("street5", "44ac7ab3"), ("street5_laptop", "405ade9c"), ("smoke", "7d2e11f4")],
)
def test_digests_are_those_from_before_the_form(name: str, digest: str) -> None:
    assert preset(name).digest.startswith(digest)


def test_the_error_of_a_wrong_kind_lists_the_known_kinds() -> None:
    with pytest.raises(
        SpecError, match=r"training.optimizer.kind: expected one of: 'adamw', 'adam', 'sgd', found 'lion'"
    ):
        parse_spec({"training": {"optimizer": {"kind": "lion"}}}, source="a")
    with pytest.raises(SpecError, match=r"data.clients.alpha: expected more than 0, found -1"):
        parse_spec({"data": {"kind": "coco", "name": "a", "clients": {"kind": "dirichlet", "alpha": -1}}}, source="a")
    assert len(PRESETS) >= 5
