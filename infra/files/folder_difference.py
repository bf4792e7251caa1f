"""Compare a folder that nobody vouches for with another one: links are not followed, special files not opened."""

from __future__ import annotations

import filecmp
import hashlib
import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

MOST_ENTRIES = 10_000
_SHOWN_BYTES = 100_000  # texts up to this size are compared by line in a message
_SHOWN_CHARACTERS = 120


@dataclass(frozen=True)
class Difference:
    """A file or folder that is not as expected. Both texts are fit for a terminal."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class FolderComparison:
    """``files``: how many were compared."""

    files: int
    differences: tuple[Difference, ...]


def compared(folder: Path, expected: Path, *, skip: Collection[str] = ()) -> FolderComparison:
    """Compare all below ``folder`` with ``expected``, byte by byte. ``skip``: paths that the caller has looked at.

    Files and folders that are not in ``expected`` are differences too, whatever is in them.
    """
    wanted = {path: kind for path, kind in _entries(expected) if path not in skip}
    differences: list[Difference] = []
    found: set[str] = set()
    for number, (path, kind) in enumerate(_entries(folder)):
        if number >= MOST_ENTRIES:
            differences.append(Difference(".", f"expected at most {MOST_ENTRIES} files and folders, found more"))
            break
        if path in skip:
            continue
        found.add(path)
        if path not in wanted:
            differences.append(Difference(shown(path), f"expected no such {kind}"))
        elif kind != wanted[path]:
            differences.append(Difference(shown(path), f"expected a {wanted[path]}, found a {kind}"))
        elif kind == "file" and (reason := _difference(folder / path, expected / path)) is not None:
            differences.append(Difference(shown(path), reason))
    differences += [Difference(shown(path), "missing") for path in sorted(wanted.keys() - found)]
    return FolderComparison(sum(kind == "file" for kind in wanted.values()), tuple(differences))


def fault(folder: Path, path: str, *, most: int) -> str | None:
    """Why ``path`` below ``folder`` cannot be read as a file of at most ``most`` bytes; None when it can."""
    parts = PurePosixPath(path).parts
    for depth in range(1, len(parts) + 1):
        try:
            status = folder.joinpath(*parts[:depth]).lstat()
        except OSError as error:
            return "missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        kind = _kind(status)
        if kind != ("file" if depth == len(parts) else "folder"):
            return f"expected a file, found a {kind}"
    return f"expected at most {most} bytes, found {status.st_size}" if status.st_size > most else None


def shown(text: str) -> str:
    """``text`` for a terminal: quoted, with escapes, unless all of it can be printed; shortened."""
    cut = text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
    return cut if cut.isprintable() else repr(cut)


def _entries(folder: Path, below: str = "") -> Iterator[tuple[str, str]]:
    """Path and kind of all below, in order; links are not followed."""
    with os.scandir(folder / below) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        path = f"{below}/{entry.name}" if below else entry.name
        kind = _kind(entry.stat(follow_symlinks=False))
        yield path, kind
        if kind == "folder":
            yield from _entries(folder, path)


def _kind(status: os.stat_result) -> str:
    if stat.S_ISREG(status.st_mode):
        return "file"
    if stat.S_ISDIR(status.st_mode):
        return "folder"
    return "link" if stat.S_ISLNK(status.st_mode) else "special file"


def _difference(found: Path, expected: Path) -> str | None:
    """What differs in two files; None when they are equal."""
    sizes = found.stat().st_size, expected.stat().st_size
    if sizes[0] == sizes[1] and filecmp.cmp(found, expected, shallow=False):
        return None
    if max(sizes) <= _SHOWN_BYTES:
        texts = [path.read_bytes().decode("utf-8", errors="backslashreplace") for path in (expected, found)]
        lines = [text.split("\n") for text in texts]
        for number, (line, other) in enumerate(zip(*lines, strict=False), start=1):
            if line != other:
                return f"line {number}: expected {shown(line)}, found {shown(other)}"
        return f"expected {len(lines[0])} lines, found {len(lines[1])}"
    if sizes[0] != sizes[1]:
        return f"expected {sizes[1]} bytes, found {sizes[0]}"
    return f"expected sha256 {_sha256(expected)}, found {_sha256(found)}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
