"""Having what was committed on the disk, where the store is this machine's own server.

That server writes an object to a temporary file and renames it, but does not sync: after a power failure the newest
objects may be empty, or missing. Whoever relies on an object calls :func:`flush` first. Any other store promises by
itself that an object that it has acknowledged stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from infra.errors import StoreCorrupt, StoreUnavailable
from infra.files.disk import existing
from infra.files.durable import sync
from infra.settings import LocalS3Settings
from infra.store.objects import ObjectStore

# Inodes of folders of which this process has synced the entry in the folder above.
_SYNCED: dict[Path, int] = {}


def flush(objects: ObjectStore, keys: Iterable[str]) -> None:
    """Sync the objects ``keys``, then the folders that hold them, up to the bucket where they are new.

    Raises:
        StoreCorrupt: an object is not there.
        StoreUnavailable: the disk refuses; names the path.
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
    """Sync the folders that held the removed objects ``keys``, so that none of them comes back.

    Raises:
        StoreUnavailable: the disk refuses; names the path.
    """
    store = objects.settings
    if not isinstance(store, LocalS3Settings):
        return
    folders = dict.fromkeys((store.folder / store.bucket / key).parent for key in keys)
    left = dict.fromkeys(existing(folder) for folder in folders)  # the server removes folders with their last object
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
            return  # and so are the folders above it
        _sync(folder.parent)
        _SYNCED[folder] = inode
        folder = folder.parent
