"""Sync committed objects to the disk, if the store is this machine's own server.

That server writes an object to a temporary file and renames it, but does not sync. After a power failure the newest
objects may be empty or missing, so code that relies on an object calls :func:`flush` first. Any other store guarantees
that an object which it has acknowledged stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from infra.errors import StoreCorrupt, StoreUnavailable
from infra.files.disk import existing
from infra.files.durable import sync
from infra.settings_groups import LocalS3Settings
from infra.store.objects import ObjectStore

# Inode of each folder whose entry in its parent folder this process has synced.
_SYNCED: dict[Path, int] = {}


def flush(objects: ObjectStore, keys: Iterable[str]) -> None:
    """Sync the objects ``keys``, then the folders that hold them, and the parents of folders that are new.

    Raises:
        StoreCorrupt: an object is missing.
        StoreUnavailable: the disk cannot be written; the message names the path.
    """
    store = objects.settings
    if not isinstance(store, LocalS3Settings):
        return
    bucket = store.folder / store.bucket
    paths = {key: bucket / key for key in keys}
    for key, path in paths.items():
        if not path.is_file():
            raise StoreCorrupt(f"{key}: missing in {bucket}")
        _sync(path)
    for folder in dict.fromkeys(path.parent for path in paths.values()):
        _sync_folders(folder, store.folder)


def flush_removal(objects: ObjectStore, keys: Iterable[str]) -> None:
    """Sync the folders that held the removed objects ``keys``, so that no power failure brings them back.

    Raises:
        StoreUnavailable: the disk cannot be written; the message names the path.
    """
    store = objects.settings
    if not isinstance(store, LocalS3Settings):
        return
    folders = dict.fromkeys((store.folder / store.bucket / key).parent for key in keys)
    left = dict.fromkeys(existing(folder) for folder in folders)  # the server removes a folder with its last object
    for folder in left:
        _sync(folder)


def _sync(path: Path) -> None:
    try:
        sync(path)
    except OSError as error:
        raise StoreUnavailable(f"{path}: cannot be written to the disk: {error.strerror}") from error


def _sync_folders(folder: Path, top: Path) -> None:
    _sync(folder)
    while folder != top:
        inode = folder.stat().st_ino
        if _SYNCED.get(folder) == inode:
            return  # then the folders above it are synced too
        _sync(folder.parent)
        _SYNCED[folder] = inode
        folder = folder.parent
