"""Names for requests to the store, by kind of object, that are the same in every run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

# Patterns of keys below a federation's folder, with their kinds. The first match counts. "{}" is the round.
_KINDS = (
    (r"rounds/([0-9]+)/plan\.json", "plan {}"),
    (r"rounds/([0-9]+)/global\.safetensors", "global {}"),
    (r"rounds/([0-9]+)/(?:server|shared)\.safetensors", "server's state {}"),
    (r"rounds/([0-9]+)/state/.+", "state {}"),
    (r"rounds/([0-9]+)/updates/.*\.json", "update's record {}"),
    (r"rounds/([0-9]+)/updates/.+", "update {}"),
    (r"rounds/([0-9]+)/evaluations/.+", "evaluation {}"),
    (r"rounds/([0-9]+)/detections\.npz", "detections {}"),
    (r"rounds/([0-9]+)/round\.json", "round {}"),
    (r"rounds/", "rounds"),
    (r"turns/.*", "letter"),
    (r"superseded/.*", "superseded"),
    (r"([a-z]+)\.[a-z]+", "{}"),  # spec, lease, best, sheet
    (r"", "all"),
)


@dataclass(frozen=True)
class Request:
    """A request: its method (LIST for a listing), the kind of its object, and the key."""

    method: str
    kind: str
    key: str


def name_request(method: str, path: str) -> Request:
    """Return the request ``method path``. The path starts with the bucket's name."""
    parts = urlsplit(path)
    query = parse_qs(parts.query, keep_blank_values=True)
    _, _, key = unquote(parts.path).lstrip("/").partition("/")
    if method == "GET" and not key:
        key, method = query.get("prefix", [""])[0], "LIST"
    if method == "POST" and "delete" in query:
        return Request("DELETE", "many", "")
    return Request(method, kind_of_key(key), key)


def kind_of_key(key: str) -> str:
    """Return the kind of an object: ``plan 2``, ``update 1``, ``letter``, ``spec``; ``bucket`` for an empty key."""
    if not key:
        return "bucket"
    head, _, rest = key.partition("/")
    if head == "federations" and "/" in rest:
        inside = rest.partition("/")[2]
        for pattern, name in _KINDS:
            match = re.fullmatch(pattern, inside)
            if match:
                return (
                    name.format(match[1].lstrip("0") or "0")
                    if match.groups() and match[1].isdigit()
                    else (name.format(*match.groups()))
                )
    return "other"
