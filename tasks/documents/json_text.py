"""JSON whose mappings have each key once. Python, like most readers, keeps the last one and says nothing."""

from __future__ import annotations

import json
import re
from typing import Any

from tasks.documents.errors import DuplicateKey

# A text, or one of the marks that say where in the document it stands.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:\n]', re.DOTALL)


def read_json(text: str | bytes, **options: Any) -> Any:
    """``json.loads(text, **options)``, but a key that stands twice in one mapping is refused.

    Raises:
        DuplicateKey: naming the key by its dotted path, and both lines.
        ValueError: it is no JSON.
        RecursionError: it is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_each_key_once, **options)
    except _Twice as twice:
        # Python's parser tells no lines. A second pass finds them, which costs only those who get the error.
        content = text if isinstance(text, str) else text.decode(json.detect_encoding(text), "surrogatepass")
        raise (_first_duplicate(content) or DuplicateKey(twice.key)) from None


class _Twice(Exception):
    def __init__(self, key: str) -> None:
        self.key = key


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        raise _Twice(next(key for key, _ in pairs if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
    return found


def _first_duplicate(text: str) -> DuplicateKey | None:
    """The first key of a valid document that its mapping has already."""
    line = 1
    mappings: list[dict[str, int] | None] = []  # the lines of the keys of all that is open; None for a list
    path: list[str] = []  # the key, or the index, at which each of them is
    key_next = False
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token == "\n":
            line += 1
        elif token in "{[":
            mappings.append({} if token == "{" else None)
            path.append("0" if token == "[" else "")
            key_next = token == "{"
        elif token in "}]":
            mappings.pop()
            path.pop()
            key_next = False
        elif token == "," and mappings:
            key_next = mappings[-1] is not None
            if not key_next:
                path[-1] = str(int(path[-1]) + 1)
        elif token[0] == '"' and key_next:
            key, lines = json.loads(token), mappings[-1]
            assert lines is not None  # a key is next in mappings only
            path[-1], key_next = key, False
            if key in lines:
                return DuplicateKey(".".join(path), lines[key], line)
            lines[key] = line
    return None
