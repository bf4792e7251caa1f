"""JSON documents with a digest of their own content, so that a flipped bit is detected and not read as a value.

The digest is a field of the document, because not every store keeps an object's metadata. It protects against damage,
not against people: anyone who may write an object can write its digest too.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

DIGEST = "record_sha256"  # name of the field with the sha256 of all other fields


def seal(document: Any) -> bytes:
    """Return ``document`` as JSON text in UTF-8; a mapping gets its digest. The same document gives the same bytes.

    Raises:
        ValueError: it has a value that JSON does not allow, as a number that is not finite.
    """
    if isinstance(document, dict):
        as_read = json.loads(json.dumps(document))  # JSON makes all keys text, and readers sort them as text
        document = {**as_read, DIGEST: content_digest(as_read)}
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def unseal(document: Any) -> tuple[Any, bool]:
    """Return the document without its digest, and whether it had one. Documents of older versions have none.

    Raises:
        ValueError: the content does not match the digest.
    """
    if not isinstance(document, dict) or DIGEST not in document:
        return document, False
    content = {name: value for name, value in document.items() if name != DIGEST}
    expected, found = document[DIGEST], content_digest(content)
    if expected != found:
        shown = str(expected)[:64]
        raise ValueError(f"{DIGEST}: expected {shown}, as the document says, found {found} of its content")
    return content, True


def content_digest(document: dict[str, Any]) -> str:
    """Return the sha256 (hex) of the document's fields but the digest, whatever their order and the text's spacing."""
    content = {name: value for name, value in document.items() if name != DIGEST}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
