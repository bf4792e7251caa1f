"""Names of federations and suites, made from names of files."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

_USABLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# A name has at most 100 characters; the digest, and the kind of a reference, follow.
_LONGEST_BASE = 70


def name_of_file(path: Path) -> str:
    """``Ubersicht-2`` for ``Übersicht (2).yaml``: a name that a federation may have, close to the file's own.

    Accents go, and each run of characters that a name may not have becomes ``-``.
    """
    if _USABLE.fullmatch(path.stem):
        return path.stem[:_LONGEST_BASE]
    letters = unicodedata.normalize("NFKD", path.stem).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", letters).lstrip("._-")[:_LONGEST_BASE].rstrip("._-")
    return name or "federation"
