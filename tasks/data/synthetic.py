"""Synthetic street: a federated detection set that is drawn when no data set is at hand.

It has twenty cameras with fixed views, each one device of the 20-device split. The 20 devices nest in the 5, and
images are divided as unevenly, as in Federated Street (arXiv 1910.11089). :mod:`tasks.data.street_scenes` draws them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.data.street import DEVICE_KEYS, IMAGES, TEST_LABELS, TRAIN_LABELS
from tasks.data.street_scenes import GROUP_OF, SceneRenderer, plan_images
from tasks.errors import DataError
from tasks.spec.data import SyntheticStreet

log = logging.getLogger(__name__)

DRAWING = 1  # version, part of the folder's name; to be raised when the same specification gives other images
# The fields that decide the images. Their digest names the folder.
_DRAWN_FROM = {"kind", "train_images", "test_images", "test", "width", "height", "seed"}

_STALE_SECONDS = 3600.0
CONTENTS = "contents.json"  # sha256 of each file of the set, by its path in the set's folder
# Path and inode of the folders whose files this process has compared with CONTENTS.
_compared: set[tuple[Path, int]] = set()


def drawn_set(spec: SyntheticStreet) -> str:
    """Return the name of the set's folder: a digest (hex) of the fields that decide its images."""
    fields = spec.model_dump(mode="json", include=_DRAWN_FROM) | {"drawing": DRAWING}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def make_synthetic_street(spec: SyntheticStreet, root: Path) -> Path:
    """Return the folder of the set under ``root``, in Federated Street's published form. Draw the set if it is missing.

    Two processes may do this at once: each draws in a folder of its own, and the first to finish puts its folder in
    place. Test entries have a device only for ``test: per-device``. Both splits share one folder, pooled or not.

    Each process hashes an existing set once, because disks flip bits. A damaged set is drawn anew.

    Raises:
        DataError: ``root`` cannot be written to.
    """
    digest = drawn_set(spec)
    final = root / digest
    damaged: str | None = None
    if final.is_dir():
        damaged = _damaged(final)
        if damaged is None:
            return final
        log.warning("%s: damaged in the cache; the set is drawn anew", final / damaged)
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_stale(root, digest)
        draft = Path(tempfile.mkdtemp(prefix=f".{digest}.", dir=root))
        try:
            with _held(draft):
                _write(spec, draft)
                if damaged is None:
                    _publish(draft, final)
                else:
                    _repair(draft, final)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{final}: the synthetic street cannot be written: {error.strerror or error}") from None
    return final


def _publish(draft: Path, final: Path) -> None:
    try:
        os.replace(draft, final)
    except OSError:
        if not final.is_dir():  # else another process was first, with the same images
            raise


def _damaged(folder: Path) -> str | None:
    """Return a file of the set that is missing or changed. None: no file is, or this process has checked before."""
    key = (folder, folder.stat().st_ino)
    if key in _compared:
        return None
    try:
        contents = json.loads((folder / CONTENTS).read_bytes())
        files = dict(contents.items())
    except (OSError, ValueError, AttributeError):  # sets that an older version drew have no such file
        return CONTENTS
    for file, expected in files.items():
        try:
            if _sha256(folder / str(file)) != expected:
                return str(file)
        except OSError:
            return str(file)
    if not {TRAIN_LABELS, TEST_LABELS} <= files.keys():
        return CONTENTS
    _compared.add(key)
    return None


def _repair(draft: Path, final: Path) -> None:
    """Replace the files in ``final`` that differ from ``draft``'s, one by one: others may be reading the set."""
    for file in [*json.loads((draft / CONTENTS).read_bytes()), CONTENTS]:
        try:
            same = (final / file).read_bytes() == (draft / file).read_bytes()
        except OSError:
            same = False
        if not same:
            (final / file).parent.mkdir(exist_ok=True)
            os.replace(draft / file, final / file)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_stale(root: Path, digest: str) -> None:
    """Remove drafts of killed processes: those that got no new file for an hour and that no process holds.

    The age alone does not prove it, because a change of the clock can make any draft look old.
    """
    for draft in root.glob(f".{digest}.*"):
        images = draft / IMAGES
        try:
            age = time.time() - (images if images.is_dir() else draft).stat().st_mtime
        except FileNotFoundError:
            continue
        if age > _STALE_SECONDS and not _is_held(draft):
            shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def _held(draft: Path) -> Iterator[None]:
    """Lock the folder while the context lasts. The lock also ends when this process dies."""
    descriptor = os.open(draft, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _is_held(draft: Path) -> bool:
    try:
        descriptor = os.open(draft, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False


def _write(spec: SyntheticStreet, folder: Path) -> None:
    (folder / IMAGES).mkdir()
    train, test = plan_images(spec)
    renderer = SceneRenderer(spec)
    # Camera by camera, so that one background is in memory at a time.
    items: dict[str, list[dict[str, Any]]] = {}
    for plan in sorted((*train, *test), key=lambda plan: (plan.camera, plan.key)):
        image, items[plan.key] = renderer.render(plan)
        image.save(folder / IMAGES / f"{plan.key}.jpg", quality=85)
    for file, plans, with_device in (
        (TRAIN_LABELS, train, True),
        (TEST_LABELS, test, spec.test == "per-device"),
    ):
        entries = []
        for plan in plans:
            devices = {DEVICE_KEYS[20]: str(plan.camera + 1), DEVICE_KEYS[5]: str(GROUP_OF[plan.camera])}
            entries.append({"image_id": plan.key, **(devices if with_device else {}), "items": items[plan.key]})
        (folder / file).write_text(json.dumps(entries), encoding="utf-8")
    images = (f"{IMAGES}/{plan.key}.jpg" for plan in (*train, *test))
    contents = {file: _sha256(folder / file) for file in (TRAIN_LABELS, TEST_LABELS, *images)}
    (folder / CONTENTS).write_text(json.dumps(contents), encoding="utf-8")
