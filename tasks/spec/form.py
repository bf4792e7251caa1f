"""Arrange a specification's JSON schema so that Prefect's UI draws a usable form from it.

Only the schema changes, not which documents are valid: pydantic still distinguishes the members of a union by their
``kind``, and its errors name the valid kinds.

How Prefect's form (3.9) draws a schema, and what this module does about it:

* It draws ``oneOf`` with a discriminator as a box of raw JSON in one of its two UIs. Unions become plain ``anyOf``.
* It gives a union's choices the titles of their classes, and selects the choice that has the most fields of the value;
  of several, the first. So where kinds have the same fields, specifications list the default first.
* It draws ``const`` as a text box. Each ``const`` also becomes an ``enum`` of one.
* It orders fields by ``position``; without it, as in the JSON object, whose order PostgreSQL does not keep. Each field
  gets a position.
* It draws an optional field, a union with null, as a switch between "int" and "None". Such a field becomes the plain
  field, not required and without a default; Prefect then accepts null too. A group of fields stays a switch, because
  there Prefect would not accept null.
"""

from __future__ import annotations

from typing import Any

# Words in a field's name that a title writes differently.
_WORDS = {"iou": "IoU", "lr": "learning rate", "map": "mAP", "nms": "NMS", "sha256": "SHA-256"}


def title_of(name: str, _field: object) -> str:
    """Return the title of a field in a form: "Local epochs" for ``local_epochs``."""
    title = " ".join(_WORDS.get(word, word) for word in name.split("_"))
    return title if title.startswith("mAP") else title[0].upper() + title[1:]


def arrange(schema: dict[str, Any]) -> None:
    """Arrange a model's JSON schema for a form, in place."""
    if "description" in schema:
        schema["description"] = _plain(schema["description"])
    fields = schema.get("properties", {})
    for position, name in enumerate(sorted(fields, key=lambda name: (name != "kind", name == "version"))):
        fields[name]["position"] = position
        _arrange_field(fields[name])


def _arrange_field(field: dict[str, Any]) -> None:
    if "oneOf" in field:
        field["anyOf"] = field.pop("oneOf")
        field.pop("discriminator", None)
    if "const" in field:
        field["enum"] = [field["const"]]
    if "default" in field and field["default"] is None:
        filled = [choice for choice in field["anyOf"] if choice.get("type") != "null"]
        if len(filled) == 1 and "$ref" not in filled[0]:
            del field["anyOf"], field["default"]
            field.update({**filled[0], **field})


def _plain(text: str) -> str:
    """Return a docstring without its marks for code."""
    return text.replace("``", "")
