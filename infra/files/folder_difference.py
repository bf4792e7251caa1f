"""Compare an untrusted folder with an expected one, without following links or opening special files."""

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
    """A file or folder that is not as expected. Both fields are safe to print on a terminal."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class FolderComparison:
    """The differences of two folders. ``files``: how many files were compared."""

    files: int
    differences: tuple[Difference, ...]


def compared(folder: Path, expected: Path, *, skip: Collection[str] = ()) -> FolderComparison:
    """Compare everything below ``folder`` with ``expected``, byte by byte.

    Files and folders that ``expected`` does not have are differences too.

    skip: paths that the caller checks itself.
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
    """Return why ``path`` below ``folder`` cannot be read as a file of at most ``most`` bytes; None: it can."""
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
    """Return ``text`` for a terminal: shortened, and unless it is printable, quoted with escapes."""
    cut = text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
    return cut if cut.isprintable() else repr(cut)


def _entries(folder: Path, below: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and kind of everything below, in order. Links are not followed."""
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
    """Return how two files differ; None: they are equal."""
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
