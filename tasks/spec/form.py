"""How a specification is drawn as a form: the JSON schema that Prefect's UI, and any other reader, is given.

Only the schema is changed, never what is read: pydantic still tells the members of a union apart by their ``kind``,
and says in its errors which kinds there are.

What Prefect's form (3.9) makes of a schema, and what is done here about it:

* ``oneOf`` with a discriminator is a box of raw JSON in one of its two UIs: unions are plain ``anyOf``.
* A union's choices bear the titles of their classes, and the one with the most fields of the value is shown as chosen,
  the first of several: where kinds have the same fields, the default is the first.
* ``const`` is a box to type in: each also is an ``enum`` of one.
* Fields come in the order of ``position``; without, in that of a JSON object, which PostgreSQL does not keep.
* A field that may be left out, in a union with null, is a switch between "int" and "None": it is the plain field, not
  required and without a default, for which Prefect takes null too.
"""

from __future__ import annotations

from typing import Any

# Words of a field's name that are not written as in a name.
_WORDS = {"iou": "IoU", "lr": "learning rate", "map": "mAP", "nms": "NMS", "sha256": "SHA-256"}


def title_of(name: str, _field: object) -> str:
    """``local_epochs`` as "Local epochs", the field's title in a form."""
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
        if len(filled) == 1:
            del field["anyOf"], field["default"]
            field.update({**filled[0], **field})


def _plain(text: str) -> str:
    """A docstring without its marks for code."""
    return text.replace("``", "")
