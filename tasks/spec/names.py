"""Make names of federations and suites from names of files."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

_USABLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# A name has at most 100 characters, and a digest and the kind of a reference are appended.
_LONGEST_BASE = 70


def data_name(folder: Path) -> str:
    """Return a valid name of a data set close to the folder's name: ``yards-2`` for ``Yards_2``."""
    letters = unicodedata.normalize("NFKD", folder.resolve().name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", letters).strip("-")[:64].rstrip("-") or "mine"


def name_of_file(path: Path) -> str:
    """Return a valid federation name close to the file's name: ``Ubersicht-2`` for ``Übersicht (2).yaml``.

    Accents are dropped, and each run of characters that a name may not have becomes ``-``.
    """
    if _USABLE.fullmatch(path.stem):
        return path.stem[:_LONGEST_BASE]
    letters = unicodedata.normalize("NFKD", path.stem).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", letters).lstrip("._-")[:_LONGEST_BASE].rstrip("._-")
    return name or "federation"
