"""Refuse ``true`` and ``false`` as numbers. Python, and so pydantic, would take them as 1 and 0."""

from __future__ import annotations

from typing import Any

from pydantic_core import PydanticKnownError

# The parts of a schema that do not hold a field's schema.
_OTHER_PARTS = {"metadata", "default", "config", "serialization", "expected", "discriminator"}


def without_booleans(schema: Any) -> Any:
    """Return the core schema of pydantic, changed so that numbers and choices of numbers refuse true and false.

    In a union, numbers become strict instead, so that the union still keeps an integer an integer.
    """
    return _changed(schema, in_union=False)


def _changed(schema: Any, *, in_union: bool) -> Any:
    if isinstance(schema, list | tuple):
        return type(schema)(_changed(item, in_union=in_union) for item in schema)
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    if kind == "function-before" and schema["function"].get("function") in _CHECKS:
        return schema
    if kind in ("int", "float"):
        if in_union:
            return {**schema, "strict": True}
        return _checked(schema, _no_boolean_int if kind == "int" else _no_boolean_float)
    if kind == "literal" and any(type(choice) is int for choice in schema["expected"]):
        return _checked(schema, _no_boolean_int)
    inside = kind == "union" or (in_union and kind in ("nullable", "default"))
    return {
        name: part if name in _OTHER_PARTS else _changed(part, in_union=inside and name in ("choices", "schema"))
        for name, part in schema.items()
    }


def _checked(schema: dict[str, Any], check: Any) -> dict[str, Any]:
    return {"type": "function-before", "function": {"type": "no-info", "function": check}, "schema": schema}


def _no_boolean_int(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticKnownError("int_type")
    return value


def _no_boolean_float(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticKnownError("float_type")
    return value


_CHECKS = (_no_boolean_int, _no_boolean_float)
