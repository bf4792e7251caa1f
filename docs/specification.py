"""Print docs/specification.md: every field of the federation, the suite and the settings, from their models.

Run from the repository's root: ``.venv/bin/python docs/specification.py``. ``make docs`` writes the page.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from infra.settings import PREFIX, Settings
from tasks.spec.federation import FederationSpec
from tasks.spec.suite import SuiteSpec

INTRODUCTION = """\
<!-- Made by docs/specification.py from the models. Change a field's description there, then run make docs. -->
# Specification and settings

Every field of the [federation](#federation), the [suite](#suite) and the [settings](#settings). A dot joins the names
of nested fields, as in `fedbench run street5 -s training.local_epochs=2`. A field whose default is *left out* has no
value unless it is set. Unknown fields, infinite numbers, and `true` and `false` in place of numbers are refused. Long
numbers are rounded to four digits.
"""
FEDERATION = """\
The experiment: a YAML file, the parameter of the Prefect flow, and the parameters of the MLflow run. Its digest names
it. `fedbench run SPEC -s FIELD=VALUE` sets a field. Model: [tasks/spec/federation.py](../tasks/spec/federation.py).
"""
SUITE = """\
A benchmark of several federations: a YAML file for `fedbench suite run`. In the file, the `spec` of an experiment may
also be the name of a preset or of a file, and `set` changes dotted fields in it: `set: {training.local_epochs: 5}`.
Model: [tasks/spec/suite.py](../tasks/spec/suite.py).
"""
SETTINGS = """\
What differs between machines: addresses, credentials, slots and folders. Settings are never part of a record. A
variable of the environment wins over the settings file (`<home>/settings.yaml`, or the file that `FEDBENCH_SETTINGS`
names). In the environment, mappings are JSON, and an empty variable counts as unset. [More](settings.md). Model:
[infra/settings.py](../infra/settings.py).
"""
COLUMNS = ("Field", "Type", "Default", "Limits", "Meaning")

LEAST_KINDS = 3  # from so many on, fields that all kinds of a model have in the same way get a table of their own

Schema = dict[str, Any]


def page() -> str:
    """Return the page's Markdown."""
    return "\n".join(
        [
            INTRODUCTION,
            *_chapter("Federation", FEDERATION, FederationSpec, {}),
            *_chapter("Suite", SUITE, SuiteSpec, {"FederationSpec": "[federation](#federation)"}),
            *_chapter("Settings", SETTINGS, Settings, {}, PREFIX),
        ]
    )


def _chapter(title: str, text: str, model: type[BaseModel], known: dict[str, str], prefix: str = "") -> Iterator[str]:
    schema = model.model_json_schema()
    chapter = _Chapter(schema["$defs"], known, prefix)
    yield f"## {title}\n\n{text}"
    yield from chapter.tables(schema, "")


class _Chapter:
    """The tables of one root model and of the models below it.

    definitions: the models below it, by name.
    known: links to models that another chapter describes, by name.
    prefix: of the variables of the environment; empty: the fields have none.
    """

    def __init__(self, definitions: dict[str, Schema], known: dict[str, str], prefix: str) -> None:
        self.definitions, self.known, self.prefix = definitions, known, prefix
        self.described: set[tuple[str, str]] = set()

    def tables(self, model: Schema, path: str, elsewhere: Sequence[str] = ()) -> Iterator[str]:
        """Yield the table of ``model``'s fields, then a section for each model that a field at ``path`` can hold.

        elsewhere: names of fields that another table has.
        """
        rows = {name: cells for name, cells in self._rows(model, path).items() if name not in elsewhere}
        yield from _table(rows.values())
        for name in rows:
            field = model["properties"][name]
            by_path: dict[str, list[str]] = {}
            for reference, where in self._models(f"{path}{name}", field):
                if reference not in self.known and (where, reference) not in self.described:
                    self.described.add((where, reference))
                    by_path.setdefault(where, []).append(reference)
            for where, references in by_path.items():
                yield from self._sections(where, references)

    def _sections(self, path: str, references: list[str]) -> Iterator[str]:
        """Yield a section for each model. Fields that several kinds have in the same way come once, before them."""
        models = [self.definitions[reference] for reference in references]
        common: dict[str, list[str]] = {}
        if len(models) >= LEAST_KINDS:
            first, *others = (self._rows(model, f"{path}.") for model in models)
            common = {
                name: cells
                for name, cells in first.items()
                if name != "kind" and all(rows.get(name) == cells for rows in others)
            }
        also = ""
        if common:
            heading = f"`{path}`: fields of every kind"
            yield f"### {heading}\n"
            properties = {name: models[0]["properties"][name] for name in common}
            yield from self.tables({**models[0], "properties": properties}, f"{path}.")
            also = f" It also has the [fields of every kind](#{_anchor(heading)})."
        for reference, model in zip(references, models, strict=True):
            yield f"### {self._heading(path, reference)}\n\n{_text(model['description'])}{also}\n"
            yield from self.tables(model, f"{path}.", tuple(common))

    def _rows(self, model: Schema, path: str) -> dict[str, list[str]]:
        """Return the row of each field, by its name, in the order of a form."""
        required = model.get("required", ())
        return {
            name: self._cells(f"{path}{name}", field, name in required)
            for name, field in _in_order(model["properties"])
        }

    def _heading(self, path: str, reference: str) -> str:
        model = self.definitions[reference]
        return f"`{path}`: {model['title']}" if "kind" in model["properties"] else f"`{path}`"

    def _models(self, path: str, field: Schema) -> Iterator[tuple[str, str]]:
        """Yield each model that ``field`` can hold: its name and the path of its fields."""
        if "$ref" in field:
            yield field["$ref"].rpartition("/")[2], path
        for choice in field.get("anyOf", ()):
            yield from self._models(path, choice)
        if isinstance(field.get("items"), dict):
            yield from self._models(f"{path}[]", field["items"])

    def _cells(self, path: str, field: Schema, required: bool) -> list[str]:
        name = f"`{path}`"
        if self.prefix and "$ref" not in field:
            name += f"<br>`{self.prefix}{path.replace('.', '__').upper()}`"
        default = "required" if required else self._default(field)
        meaning = "Selects the fields of this section." if path.endswith(".kind") else _text(field["description"])
        return [name, self._type(path, field), default, _limits(field), meaning]

    def _type(self, path: str, field: Schema) -> str:
        if "$ref" in field:
            reference = field["$ref"].rpartition("/")[2]
            model = self.definitions[reference]
            title = model["title"] if "kind" in model["properties"] else "fields"
            return self.known.get(reference, f"[{title}](#{_anchor(self._heading(path, reference))})")
        if "anyOf" in field:
            return ", ".join(self._type(path, choice) for choice in field["anyOf"] if choice != {"type": "null"})
        if "enum" in field:
            return ", ".join(f"`{_value(value)}`" for value in field["enum"])
        if "prefixItems" in field:
            return f"{len(field['prefixItems'])} of: {self._type(path, field['prefixItems'][0])}"
        if "items" in field:
            return f"list of: {self._type(f'{path}[]', field['items'])}"
        if "additionalProperties" in field:
            return f"mapping of names to: {self._type(path, field['additionalProperties'])}"
        if "patternProperties" in field:
            (inner,) = field["patternProperties"].values()
            return f"mapping of names to: {self._type(path, inner)}"
        named = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}
        formats = {"path": "path", "password": "secret text", "ipv4": "IPv4 address"}
        return formats.get(field.get("format", ""), named[field["type"]])

    def _default(self, field: Schema) -> str:
        value = field.get("default")
        if value is None:
            return "empty" if "additionalProperties" in field else "left out"
        if isinstance(value, dict):
            return f"`kind: {value['kind']}`" if "kind" in value else "see its fields"
        return f"`{_value(value)}`"


def _table(rows: Iterable[list[str]]) -> Iterator[str]:
    yield _row(COLUMNS)
    yield _row(["---"] * len(COLUMNS))
    yield from map(_row, rows)
    yield ""


def _in_order(fields: dict[str, Schema]) -> list[tuple[str, Schema]]:
    """Fields as a form shows them; those of the settings have no position and keep their order."""
    return sorted(fields.items(), key=lambda item: item[1].get("position", 0))


def _limits(field: Schema) -> str:
    """The limits of a value, or of each item of a list."""
    parts = [
        f"{sign} {int(field[key]) if field[key] == int(field[key]) else field[key]:,}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in field
    ]
    if "pattern" in field:
        parts.append(_code(field["pattern"]))
    if "minLength" in field:
        parts.append(f"characters: ≥ {field['minLength']}")
    if "items" in field and "minItems" in field:
        parts.append(f"items: ≥ {field['minItems']}")
    inner = field.get("items") or next(iter(field.get("prefixItems", ())), None)
    parts += [limits for choice in field.get("anyOf", ()) if (limits := _limits(choice))]
    if isinstance(inner, dict) and (limits := _limits(inner)):
        parts.append(limits if limits.startswith("each: ") else f"each: {limits}")
    return ", ".join(parts)


def _code(text: str) -> str:
    """``text`` as code in a table's cell, where a bar would end the cell even between backquotes."""
    if "|" not in text:
        return f"`{text}`"
    return f"<code>{''.join(letter if letter.isalnum() else f'&#{ord(letter)};' for letter in text)}</code>"


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value.replace(str(Path.home()), "~")
    return json.dumps(_rounded(value))


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) and value != int(value) else value


def _text(text: str) -> str:
    """A description as one paragraph; roles and marks of code in docstrings are backquotes in Markdown."""
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text).replace("``", "`")
    return " ".join(html.escape(text, quote=False).replace("|", "&#124;").split())


def _anchor(heading: str) -> str:
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(page(), end="")
