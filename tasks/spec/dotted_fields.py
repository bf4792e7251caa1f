"""The fields of a federation's specification by their dotted names, with a JSON schema of the value of each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

# Keywords for people and forms; the rest restricts values.
_SHOWN = ("title", "description", "position", "default")


def overrides_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return a JSON schema of mappings from dotted fields of ``model`` to values, as ``{"training.batch_size": 4}``.

    Names and single values are checked. A group of fields takes any value, because its rules are those of its kind. The
    schema has no properties, so that a form draws one box instead of a hundred.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    open_groups: dict[str, None] = {}
    schema = model.model_json_schema()
    for name, field, is_open in _fields(schema, schema.get("$defs", {}), ""):
        values = found.setdefault(name, [])
        value = _value(field)
        if value not in values:
            values.append(value)
        if is_open:
            open_groups[name] = None
    inside = [{"pattern": rf"^{re.escape(name)}\..+$"} for name in open_groups]
    return {
        # One of several, because a message about a single enum would list all names.
        "propertyNames": {"anyOf": [{"enum": list(found)}, *inside, {"not": {}}]},
        "patternProperties": {f"^{re.escape(name)}$": _any_of(values) for name, values in found.items()},
    }


def _fields(schema: dict[str, Any], models: dict[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Yield dotted name and schema of each field of a model, and whether it is a mapping with names of its own."""
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        choices = [field, *field.get("anyOf", ())]
        is_open = any(choice.get("type") == "object" for choice in choices)  # fields of models are references
        # tasks.spec.form has taken null and default from optional fields.
        optional = name not in required and "default" not in field
        yield f"{prefix}{name}", _or_null(field) if optional else field, is_open
        for choice in choices:
            below = models.get(choice.get("$ref", "").rpartition("/")[2])
            if below is not None:
                yield from _fields(below, models, f"{prefix}{name}.")


def _or_null(field: dict[str, Any]) -> dict[str, Any]:
    if "type" not in field:
        return field
    return field | {"type": [field["type"], "null"]} | ({"enum": [*field["enum"], None]} if "enum" in field else {})


def _value(field: dict[str, Any]) -> dict[str, Any]:
    """Return what restricts the values of a field; nothing where it is a group of fields."""
    if "$ref" in json.dumps(field):
        return {}
    return {key: value for key, value in field.items() if key not in _SHOWN}


def _any_of(values: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the schema of a field that several kinds have."""
    if {} in values:
        return {}
    if len(values) == 1:
        return values[0]
    if all("enum" in value for value in values):
        return {"enum": list(dict.fromkeys(name for value in values for name in value["enum"]))}
    return {"anyOf": values}
