"""JSON documents that carry a digest of their own content, so that a flipped bit is no figure without a word.

The digest is a field of the document, because not every store keeps an object's metadata. It guards against damage, not
against people: whoever may write an object can write the digest too.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

DIGEST = "record_sha256"  # of the document without this field


def seal(document: Any) -> bytes:
    """``document`` as JSON text in UTF-8, a mapping with its digest. The same document gives the same bytes.

    Raises:
        ValueError: it holds what JSON cannot, as a number that is not finite.
    """
    if isinstance(document, dict):
        as_read = json.loads(json.dumps(document))  # whoever reads it sorts keys that are text
        document = {**as_read, DIGEST: content_digest(as_read)}
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def unseal(document: Any) -> tuple[Any, bool]:
    """The document without its digest, and whether it had one; those from before there were digests have none.

    Raises:
        ValueError: the content is not that of the digest.
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
    """sha256 (hex) of the document's fields, however they are spaced and ordered; a digest in it does not count."""
    content = {name: value for name, value in document.items() if name != DIGEST}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
