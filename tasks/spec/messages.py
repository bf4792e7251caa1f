"""Turn a validation error into messages for the user: the dotted field, what was expected, and what was found."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from tasks.documents.by_type import is_model, item_type, members, tag_values, tags
from tasks.spec import extensions
from tasks.spec.nearest import did_you_mean, listed

# Our wording for pydantic's error types (https://docs.pydantic.dev/latest/errors/validation_errors/). Other types keep
# pydantic's.
_EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a mapping of fields",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_attributes_type": "a mapping of fields",
    "model_type": "a mapping of fields",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_type": "text (a number in quotes)",
    "too_long": "a list of at most {max_length}",
    "too_short": "a list of at least {min_length}",
    "tuple_type": "a list",
}
_LONGEST = 80  # characters of a value in a message
_QUOTED = re.compile(r"'([^']*)'")


@dataclass(frozen=True)
class _Field:
    """The field that a mistake is in.

    names: the parts of its dotted path in the file.
    holder: the model that has the field; None if it is not in a model.
    kind: the field's type.
    others: the other members of the union that ``holder`` was chosen from by its kind.
    """

    names: tuple[str, ...]
    holder: type[BaseModel] | None
    kind: Any
    others: tuple[type[BaseModel], ...] = ()


def explain(error: ValidationError, model: type[BaseModel], source: str) -> str:
    """Return a line for each mistake: ``source``, the field's dotted path, what was expected and what was found."""
    items = error.errors(include_url=False, include_context=True)
    found = [_line(item, model) for item in items if not _of_its_items(item, items)]
    return "\n".join(f"{source}: {line}" for text in found for line in text.splitlines())


def _of_its_items(item: Any, items: Sequence[Any]) -> bool:
    """Return whether ``item`` says that a list is too short only because pydantic does not count its wrong items."""
    place = item["loc"]
    return item["type"] == "too_short" and any(
        len(other["loc"]) > len(place) and other["loc"][: len(place)] == place for other in items
    )


def _line(item: Any, model: type[BaseModel]) -> str:
    kind, context = item["type"], item.get("ctx", {})
    found_at = _field_at(model, item["loc"])
    field = ".".join(found_at.names)
    if kind == "value_error":
        # From a check of several fields. Each line begins with the field's path below the model that is checked.
        return "\n".join(f"{field}.{line}" if field else line for line in str(context["error"]).splitlines())
    if kind == "extra_forbidden":
        return f"{field}: no such field{_known_fields(found_at)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = context["discriminator"].strip("'")
        known = tag_values(found_at.kind, tag)
        if kind == "union_tag_not_found":
            return f"{field}.{tag}: expected one of: {listed(known, repr)}, found none"
        hint = extensions.hint(found_at.names[-1]) + did_you_mean(context["tag"], known)
        return f"{field}.{tag}: expected one of: {listed(known, repr)}, found {context['tag']!r}{hint}"
    if kind == "missing":
        return f"{field}: missing"
    expected = _EXPECTED.get(kind)
    limits = {name: f"{limit:g}" if isinstance(limit, float) else limit for name, limit in context.items()}
    text = item["msg"] if expected is None else "expected " + expected.format(**limits)
    hint = ""
    if kind == "model_attributes_type" and str(item["input"]) in tag_values(found_at.kind, "kind"):
        hint = f"; set {field}.kind"  # the name of a kind in place of its fields
    elif kind == "literal_error":
        hint = did_you_mean(item["input"], _QUOTED.findall(context["expected"]))
    return f"{field or '(whole)'}: {text}, found {_formatted(item['input'])}{hint}"


def _known_fields(field: _Field) -> str:
    """Return the fields that exist in place of the unknown ``field``, and the nearest of them."""
    if field.holder is None:
        return ""
    known, other_kinds = list(field.holder.model_fields), _of_other_kinds(field)
    path = "".join(f"{name}." for name in field.names[:-1])
    near = "" if other_kinds else did_you_mean(field.names[-1], known, path)
    return f"; expected one of: {listed(known)}{other_kinds}{near}"


def _of_other_kinds(field: _Field) -> str:
    """Return that the unknown ``field`` belongs to other kinds than the chosen one; empty if no kind has it."""
    name = field.names[-1]
    having = [other for other in field.others if name in other.model_fields]
    if field.holder is None or not having:
        return ""
    return f" (of kind {_kinds([field.holder])}; {name} is a field of kind {_kinds(having)})"


def _kinds(models: Sequence[type[BaseModel]]) -> str:
    return ", ".join(str(name) for model in models for name in tags(model).values())


def _formatted(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return f"{type(value).__name__} too long to print"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _field_at(model: type[BaseModel], path: Sequence[int | str]) -> _Field:
    """Return the field at pydantic's ``path``. The path may hold tags of a union's members; these are left out."""
    names: list[str] = []
    holder: type[BaseModel] | None = None
    kind: Any = model
    others: tuple[type[BaseModel], ...] = ()
    siblings = others
    for part in path:
        choices = members(kind)
        if len(choices) > 1:
            tagged = [member for member in choices if part in tags(member).values()]
            if tagged:
                kind, others = tagged[0], tuple(one for one in choices if one is not tagged[0] and is_model(one))
                continue
        holder = choices[0] if len(choices) == 1 and is_model(choices[0]) else None
        siblings, others = others, ()
        names.append(str(part))
        if holder is not None:
            known = holder.model_fields.get(str(part))
            kind = known.annotation if known is not None else None
        else:
            kind = item_type(choices[0] if len(choices) == 1 else None, part)
    return _Field(tuple(names), holder, kind, siblings)
