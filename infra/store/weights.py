"""Weights in the store, and this machine's content-addressed cache of them.

A weight object is safetensors (never a pickle). A record names it and holds its sha256, by which every download is
checked. Each machine downloads it once, whatever its number of slots. Weights that this machine uploads are in its
cache at once. A process hashes each file of the cache before it first uses it, because disks flip bits, and downloads
a damaged file again.

    <cache>/<first two digits>/<sha256>.safetensors     read-only; complete or absent
    <cache>/locks/<first two digits>.lock               one download of a digest at a time
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkstemp

from infra.errors import StoreCorrupt
from infra.files.lock import FileLock
from infra.store.objects import ObjectStore

log = logging.getLogger(__name__)

IN_USE_SECONDS = 600.0  # a file used more recently is not evicted: a slot may be about to open it
LEFTOVER_SECONDS = 3600.0  # an older temporary file is that of a process that died
LOCK_SECONDS = 600.0  # the most to wait for another slot's download
EVICT_PART = 0.02  # part of the limit that a process adds to the cache before it looks for files to evict


@dataclass(frozen=True)
class StoredObject:
    """An object in the store, as a record names it. ``bytes`` is its size."""

    key: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Fetched:
    """A local, verified file, which must only be read. ``downloaded``: bytes that were downloaded for it just now."""

    path: Path
    downloaded: int


class WeightStore:
    """The weight objects of a store, with a cache in ``cache_dir`` of at most ``cache_megabytes`` (10^6 bytes)."""

    def __init__(self, objects: ObjectStore, cache_dir: Path, cache_megabytes: int) -> None:
        self.objects = objects
        self.cache_dir = cache_dir
        self.cache_bytes = cache_megabytes * 1_000_000
        self._added = 0
        # Device and inode of each file that this process has hashed, by sha256.
        self._hashed: dict[str, tuple[int, int]] = {}

    def put(self, key: str, content: Path | bytes | Callable[[Path], object]) -> StoredObject:
        """Upload safetensors as ``key``, and keep them in the cache.

        content: a file, bytes, or a function that writes the content to a given path.

        Raises:
            StoreUnavailable, SettingsError: as :class:`~infra.store.objects.ObjectStore` does.
        """
        with self._temporary() as temporary:
            # A copy is made first, so that the same bytes are hashed, sent and cached even if the source changes.
            if isinstance(content, Path):
                shutil.copyfile(content, temporary)
            elif isinstance(content, bytes):
                temporary.write_bytes(content)
            else:
                content(temporary)
            digest, size = _digest(temporary), temporary.stat().st_size
            self.objects.put_file(key, temporary)
            self._keep(temporary, digest)
        self._evict_after(size)
        return StoredObject(key, digest, size)

    def get(self, key: str, sha256: str, size: int) -> Fetched:
        """Return a local file with the content that a record names, from the cache or else from the store.

        Raises:
            StoreCorrupt: the object is missing, is larger than ``size``, or had another sha256 or size twice in a row.
                The message names the key, what was expected and what was found. At most ``size`` bytes are written.
            StoreUnavailable, SettingsError: as :class:`~infra.store.objects.ObjectStore` does.
        """
        path = self.path(sha256)
        if self._usable(path, sha256, size):
            return Fetched(path, 0)
        lock = FileLock(self.cache_dir / "locks" / f"{sha256[:2]}.lock")
        # A process that hangs with the lock must not stop the others for ever: each then downloads for itself.
        locked = lock.acquire(timeout=LOCK_SECONDS)
        try:
            if self._usable(path, sha256, size):
                return Fetched(path, 0)
            self._download(key, sha256, size)
        finally:
            if locked:
                lock.release()
        self._evict_after(size)
        return Fetched(path, size)

    def fault(self, key: str, sha256: str, size: int) -> str | None:
        """Download the object that a record names, even if it is cached. Return what is wrong with it, or None.

        Raises:
            StoreUnavailable, SettingsError: as :class:`~infra.store.objects.ObjectStore` does.
        """
        try:
            self._download(key, sha256, size)
        except StoreCorrupt as error:
            return str(error)
        self._evict_after(size)
        return None

    def has(self, sha256: str, size: int) -> bool:
        """Return whether the cache has this content undamaged."""
        path = self.path(sha256)
        try:
            return path.stat().st_size == size and _digest(path) == sha256
        except FileNotFoundError:
            return False

    def put_back(self, key: str, sha256: str, size: int) -> bool:
        """Write the object that a record names again, from the cache. Return whether the cache has it undamaged.

        Raises:
            StoreUnavailable, SettingsError: as :class:`~infra.store.objects.ObjectStore` does.
        """
        with self._temporary() as temporary:
            try:
                shutil.copyfile(self.path(sha256), temporary)
            except FileNotFoundError:
                return False
            if (_digest(temporary), temporary.stat().st_size) != (sha256, size):
                return False
            self.objects.put_file(key, temporary)
        return True

    def path(self, sha256: str) -> Path:
        """Return the path of this content in the cache, whether or not it is there."""
        return self.cache_dir / sha256[:2] / f"{sha256}.safetensors"

    def forget(self, digests: Iterable[str]) -> None:
        """Remove from the cache what nobody will use again. New files are removed before they reach the disk."""
        for sha256 in digests:
            self._hashed.pop(sha256, None)
            self.path(sha256).unlink(missing_ok=True)

    def _evict_after(self, size: int) -> None:
        # Reading every file's status after every put would take n² reads in a round of n clients.
        self._added += size
        if self._added > EVICT_PART * self.cache_bytes:
            self._added = 0
            self.evict()

    def evict(self) -> None:
        """Remove the least recently used files until the cache is under its limit, but none that may be in use."""
        now = time.time()
        files: list[tuple[float, int, Path]] = []
        for path in self.cache_dir.glob("??/*"):
            with suppress(FileNotFoundError):  # another process evicts too
                status = path.stat()
                if path.suffix == ".tmp":
                    if now - status.st_mtime > LEFTOVER_SECONDS:
                        path.unlink()
                    continue
                files.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for used, size, path in sorted(files):
            if total <= self.cache_bytes or now - used < IN_USE_SECONDS:
                break
            path.unlink(missing_ok=True)
            total -= size

    def _usable(self, path: Path, sha256: str, size: int) -> bool:
        try:
            status = path.stat()
        except FileNotFoundError:
            return False
        file = (status.st_dev, status.st_ino)
        hashed = self._hashed.get(sha256) == file
        if status.st_size != size or not (hashed or _digest_if_readable(path) == sha256):
            log.warning("%s: this file of the weight cache is damaged and is fetched from the store again", path)
            return False
        self._hashed[sha256] = file
        with suppress(OSError):
            os.utime(path)  # the time of last use, by which files are evicted
        return True

    def _download(self, key: str, sha256: str, size: int) -> None:
        found = ""
        for _ in range(2):
            with self._temporary() as temporary:
                self.objects.get_file(key, temporary, size)
                digest, length = _digest(temporary), temporary.stat().st_size
                if (digest, length) == (sha256, size):
                    self._keep(temporary, sha256)
                    return
                found = f"sha256 {digest}, {length} bytes"
        raise StoreCorrupt(f"{key}: expected sha256 {sha256}, {size} bytes, as its record says; found {found}")

    def _keep(self, temporary: Path, sha256: str) -> None:
        path = self.path(sha256)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.chmod(0o400)
        status = temporary.stat()
        temporary.replace(path)
        self._hashed[sha256] = (status.st_dev, status.st_ino)

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        folder = self.cache_dir / "00"  # on the cache's file system, and where eviction looks
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = mkstemp(suffix=".tmp", dir=folder)
        os.close(descriptor)
        path = Path(name)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)  # a kept file has been renamed


def _digest_if_readable(path: Path) -> str | None:
    try:
        return _digest(path)
    except OSError:  # the disk failed, or another process has evicted the file
        return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
