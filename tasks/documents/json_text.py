"""Read JSON, and refuse a key that occurs twice. Python, like most readers, silently keeps the last value."""

from __future__ import annotations

import json
import re
from typing import Any

from tasks.documents.errors import DuplicateKey

# A text in quotes, or one of the marks that give its position in the document.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:\n]', re.DOTALL)


def read_json(text: str | bytes, **options: Any) -> Any:
    """Return ``json.loads(text, **options)``, but refuse a key that occurs twice in one mapping.

    Raises:
        DuplicateKey: a key occurs twice; the message names its dotted path and both lines.
        ValueError: the text is not JSON.
        RecursionError: it is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_each_key_once, **options)
    except _Twice as twice:
        # Python's parser does not give lines. A second pass finds them, and only documents with this error need it.
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
    """Return the first key of a valid document that its mapping already has; None if there is none."""
    line = 1
    mappings: list[dict[str, int] | None] = []  # for each open mapping, its keys' lines; None for an open list
    path: list[str] = []  # for each of them, the current key or index
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
            assert lines is not None  # only mappings have keys
            path[-1], key_next = key, False
            if key in lines:
                return DuplicateKey(".".join(path), lines[key], line)
            lines[key] = line
    return None
