"""Merge what people changed on Prefect's page with what ``fedbench deploy`` writes. Nothing here imports Prefect.

``fedbench deploy`` keeps a mark, a short hash, of every value that it wrote. A value on the server that differs from
its mark was changed on the page, and stays. Any other value becomes the new one. If a group of fields was changed on
both sides, each field counts by itself, unless the group has become another kind. A list counts as one value. None and
a value that is left out mean the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flows.deployments.table import CronTimes

Marks = Mapping[str, Any]  # by field: a mark, or the marks of a group
MOST_CHARACTERS = 4800  # of a record; Prefect's variables have up to 5,000
_MARK_CHARACTERS = 10
_DEEPEST = 50
_LONGEST_VALUE = 60  # characters of a value in a line


class _Missing:
    """Stands for a value that is left out."""

    def __repr__(self) -> str:
        return "none"


MISSING = _Missing()


@dataclass(frozen=True)
class Edit:
    """A value that was changed on Prefect's page: ``found`` is there, ``offered`` is what ``fedbench deploy`` has."""

    field: str
    found: Any
    offered: Any

    def kept(self) -> str:
        """Return the line for an edit that stays."""
        return f"{self._name}: {_short(self.found)}, not {_short(self.offered)}"

    def replaced(self) -> str:
        """Return the line for an edit that is overwritten."""
        return f"{self._name}: {_short(self.offered)}, was {_short(self.found)}"

    @property
    def _name(self) -> str:
        return self.field.removeprefix("parameters.")


@dataclass(frozen=True)
class Written:
    """What ``fedbench deploy`` wrote last into a deployment. ``schedule``: the one with fedbench's slug."""

    marks: Marks
    schedule: CronTimes | None

    @classmethod
    def of(cls, fields: Mapping[str, Any], schedule: CronTimes | None) -> Written:
        """Return the record of ``fields``. Where it would be too long, deep groups have one mark."""
        for depth in (_DEEPEST, *range(4, 0, -1)):
            written = cls(marks(fields, depth), schedule)
            if len(json.dumps(written.document(""))) <= MOST_CHARACTERS:
                break
        return written

    def document(self, deployment: str) -> dict[str, Any]:
        """Return the record of the deployment with this id as JSON values."""
        schedule = None if self.schedule is None else asdict(self.schedule)
        return {"deployment": deployment, "fields": self.marks, "schedule": schedule}

    @classmethod
    def of_document(cls, document: object, deployment: str) -> Written | None:
        """Return the record; None if it is of another deployment, or unreadable."""
        if not isinstance(document, Mapping) or document.get("deployment") != deployment:
            return None
        fields, schedule = document.get("fields"), document.get("schedule")
        if not isinstance(fields, Mapping) or not _are_marks(fields):
            return None
        try:
            return cls(fields, None if schedule is None else CronTimes(**schedule))
        except TypeError:
            return None


def marks(fields: Mapping[str, Any], depth: int = _DEEPEST) -> dict[str, Any]:
    """Return the mark of each field. Groups that lie ``depth`` levels deep have one mark."""
    return {
        name: marks(value, depth - 1) if isinstance(value, Mapping) and depth > 1 else _mark(value)
        for name, value in fields.items()
        if value is not None
    }


def merge(
    written: Marks, wanted: Mapping[str, Any], found: Mapping[str, Any], raw: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], list[Edit]]:
    """Return ``wanted`` with the edits, and the edits that differ from it.

    found: what is on the server, with the defaults of fields that are left out there.
    raw: what is on the server, as it is there; ``found`` if it is not given. A value that equals its mark in either
        form is no edit.
    """
    return _merge(written, wanted, found, found if raw is None else raw, "")


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[Edit]:
    """Return all values of ``found`` that differ from ``wanted``, as edits."""
    return merge(marks(wanted), wanted, found)[1]


def _merge(
    written: Marks, wanted: Mapping[str, Any], found: Mapping[str, Any], raw: Mapping[str, Any], prefix: str
) -> tuple[dict[str, Any], list[Edit]]:
    merged: dict[str, Any] = {}
    edits: list[Edit] = []
    for name in dict.fromkeys((*wanted, *found, *raw)):
        before, new, plain = written.get(name, MISSING), wanted.get(name, MISSING), raw.get(name, MISSING)
        there = found.get(name, None if name in raw else MISSING)
        if _has_mark(plain, before) or _has_mark(there, before) or _same(there, new):
            value = new
        elif _same_kind(before, new, there):
            value, more = _merge(_group(before), new, there, _group(plain), f"{prefix}{name}.")
            edits += more
        else:
            value = there
            edits.append(Edit(f"{prefix}{name}", there, new))
        if value is not MISSING:
            merged[name] = value
    return merged, edits


def _has_mark(value: Any, mark: Any) -> bool:
    if _is_none(value) or mark is MISSING:
        return _is_none(value) and mark is MISSING
    if not isinstance(mark, Mapping):
        return bool(_mark(value) == mark)
    return isinstance(value, Mapping) and all(
        _has_mark(value.get(name, MISSING), mark.get(name, MISSING)) for name in {*value, *mark}
    )


def _same(one: Any, other: Any) -> bool:
    return (_is_none(one) and _is_none(other)) or (
        not _is_none(one) and not _is_none(other) and _text(one) == _text(other)
    )


def _same_kind(before: Any, new: Any, there: Any) -> bool:
    """Return whether the three are groups of fields, of the same kind if they have one."""
    if not isinstance(new, Mapping) or not isinstance(there, Mapping) or not _same(new.get("kind"), there.get("kind")):
        return False
    if before is MISSING:
        return True
    return isinstance(before, Mapping) and _has_mark(new.get("kind"), before.get("kind", MISSING))


def _group(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_none(value: Any) -> bool:
    return value is None or value is MISSING


def _mark(value: Any) -> str:
    return hashlib.sha256(_text(value).encode()).hexdigest()[:_MARK_CHARACTERS]


def _text(value: Any) -> str:
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    """Return the value without differences that JSON and the page's form do not keep: 1 and 1.0, null and left out."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _are_marks(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(_are_marks(each) for each in value.values())
    return isinstance(value, str)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else "none" if _is_none(value) else json.dumps(value)
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"
