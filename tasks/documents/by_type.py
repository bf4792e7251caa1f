"""Give the plain scalars of a document values, by the types of the model's fields that they fill."""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, SecretStr

from tasks.documents.errors import DocumentError
from tasks.documents.plain import Plain

_TEXTS = (str, Path, SecretStr, IPv4Address, enum.Enum)


def settle(document: Any, model: type[BaseModel]) -> tuple[Any, list[str]]:
    """Return ``document`` with a value in place of each :class:`Plain`, and a message for each that has no value.

    In a field that takes text, the value is the text as written; null is None if the field takes that too. In other
    fields it is the value that YAML 1.1 and 1.2 both read, and a message if they differ. A scalar in no field of
    ``model`` stays text if they differ, without a message: the model refuses the unknown field anyway.
    """
    faults: list[str] = []
    return (_settled(document, model, (), faults) if _has_plain(document) else document), faults


def _has_plain(value: Any) -> bool:
    """Return whether ``value`` holds a plain scalar. Records of a store, which are read often, are JSON without any."""
    if isinstance(value, dict):
        return any(map(_has_plain, value.values()))
    return any(map(_has_plain, value)) if isinstance(value, list) else isinstance(value, Plain)


def _settled(value: Any, kind: Any, path: tuple[str, ...], faults: list[str]) -> Any:
    if isinstance(value, Plain):
        return _scalar(value, kind, path, faults)
    if isinstance(value, dict):
        holder = _holder(value, kind)
        return {
            str(name): _settled(item, _field(holder, str(name)), (*path, str(name)), faults)
            for name, item in value.items()
        }
    if isinstance(value, list):
        lists = [member for member in members(kind) if _is_a(member, (list, tuple, set, frozenset))]
        holder = lists[0] if lists else None
        return [
            _settled(item, item_type(holder, index), (*path, str(index)), faults) for index, item in enumerate(value)
        ]
    return value


def _scalar(plain: Plain, kind: Any, path: tuple[str, ...], faults: list[str]) -> Any:
    choices = members(kind)
    if any(map(_takes_text, choices)):
        return None if plain.is_null and _takes_null(kind) else str(plain)
    try:
        return plain.value(".".join(path))
    except DocumentError as error:
        if choices != (None,) and not all(is_model(member) for member in choices):
            faults.append(str(error))
        return str(plain)


def _holder(value: dict[str, Any], kind: Any) -> Any:
    """Return the type for the mapping ``value``: the model that its tag (such as ``kind``) chooses, or a mapping type.

    ``kind``: the field's type. None where no type fits.
    """
    able = [member for member in members(kind) if is_model(member) or _is_a(member, (dict,))]
    if len(able) > 1:
        able = [one for one in able if any(value.get(tag) == choice for tag, choice in tags(one).items())]
    return able[0] if able else None


def _field(holder: Any, name: str) -> Any:
    if is_model(holder):
        known = holder.model_fields.get(name)
        return None if known is None else known.annotation
    return item_type(holder, name)


def _takes_text(kind: Any) -> bool:
    if typing.get_origin(kind) is Literal:
        return any(isinstance(choice, str) for choice in typing.get_args(kind))
    return isinstance(kind, type) and issubclass(kind, _TEXTS)


def _takes_null(kind: Any) -> bool:
    if typing.get_origin(kind) is Annotated:
        return _takes_null(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return any(map(_takes_null, typing.get_args(kind)))
    return kind is type(None)


def _is_a(kind: Any, origins: tuple[type, ...]) -> bool:
    return (typing.get_origin(kind) or kind) in origins


def is_model(kind: Any) -> bool:
    """Return whether ``kind`` is a pydantic model."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def members(kind: Any) -> tuple[Any, ...]:
    """Return the types of a union, and of unions within it, without None; for any other type, that type alone."""
    while typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        parts = [members(member) for member in typing.get_args(kind) if member is not type(None)]
        return tuple(member for part in parts for member in part)
    return (kind,)


def item_type(kind: Any, part: int | str) -> Any:
    """Return the type of the item at ``part`` (index or key) of a tuple, list or mapping; None if it is unknown."""
    inner = [argument for argument in typing.get_args(kind) if argument is not Ellipsis]
    if not inner:
        return None
    return inner[part] if isinstance(part, int) and part < len(inner) else inner[-1]


def tags(kind: Any) -> dict[str, Any]:
    """Return the fields of a model that can have only one value, such as ``kind``, each with this value."""
    if not is_model(kind):
        return {}
    return {name: field.default for name, field in kind.model_fields.items() if _has_one_value(field.annotation)}


def tag_values(kind: Any, tag: str) -> Sequence[str]:
    """Return the values that the field ``tag`` has in the members of the union ``kind``."""
    return [str(tags(member)[tag]) for member in members(kind) if tag in tags(member)]


def _has_one_value(annotation: Any) -> bool:
    return typing.get_origin(annotation) is Literal and len(typing.get_args(annotation)) == 1
