"""Synthetic street: a federated detection set that is drawn when no data set is at hand.

Twenty cameras with fixed views, each one device of the 20-device split. The 20 nest in the 5 as Federated
Street's do (arXiv 1910.11089), and images are divided as unevenly. Class mixes differ by device as in Hsu et
al. (arXiv 1909.06335): a Dirichlet draw around the classes' shares. All tables stand in front of one group's
cameras.
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.data import drawing
from tasks.data.partition import divide
from tasks.data.street import DEVICE_KEYS, IMAGES, TEST_LABELS, TRAIN_LABELS
from tasks.errors import DataError
from tasks.spec.data import SyntheticStreet

log = logging.getLogger(__name__)

DRAWING = 1  # raised when the same specification gives other images; part of the folder's name
CLASSES = tuple(drawing.PAINTERS)
# The fields that decide what is drawn, and so name the folder.
_DRAWN_FROM = {"kind", "train_images", "test_images", "test", "width", "height", "seed"}

# Federated Street's training images by device_1_id (1 to 20), and the device_2_id that each belongs to.
STREET_IMAGES = (163, 76, 50, 39, 52, 14, 38, 8, 34, 13, 18, 39, 32, 14, 37, 30, 27, 32, 15, 34)
GROUP_OF = (2, 4, 5, 2, 1, 1, 1, 1, 1, 2, 2, 2, 1, 4, 3, 2, 2, 4, 2, 1)

# Per class: share of all boxes, and middle width and height in pixels of a 704 x 576 image. Sizes are close
# to the published medians. Shares are flatter than the published ones (4 % to 26 %), so that a short run
# meets every class often enough to learn it.
_SHARES = (0.13, 0.14, 0.17, 0.19, 0.12, 0.16, 0.09)
_SIZES = ((56, 62), (58, 60), (56, 70), (132, 102), (50, 78), (180, 124), (118, 84))
_CONCENTRATION = 4.0  # of the Dirichlet draw: low is more skewed
_LOCAL_CLASS, _LOCAL_GROUP = "table", 2
# Chance of 1, 2, ... objects in an image; 2.7 on average.
_OBJECTS = (0.34, 0.24, 0.17, 0.10, 0.06, 0.05, 0.03, 0.01)
_MOST_HIDDEN = 0.4  # of an object's box
_STALE_SECONDS = 3600.0
CONTENTS = "contents.json"  # sha256 of each file of the set, by its path in there
# Folders that this process has compared with their contents: path and inode.
_compared: set[tuple[Path, int]] = set()


@dataclass(frozen=True)
class _Plan:
    """What one image will show: its camera (0 to 19) and its objects' classes."""

    key: str
    camera: int
    labels: tuple[int, ...]


def make_synthetic_street(spec: SyntheticStreet, root: Path) -> Path:
    """The folder of the set under ``root``, in Federated Street's published form; drawn if not there yet.

    Two processes may do this at once: each draws in a folder of its own, the first to finish puts its in
    place. Test entries carry their device only for ``test: per-device``. Both splits share one folder, pooled or not.

    A process hashes a set that is there once, for disks flip bits. What is damaged is drawn anew.

    Raises:
        DataError: ``root`` cannot be written to.
    """
    fields = spec.model_dump(mode="json", include=_DRAWN_FROM) | {"drawing": DRAWING}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
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
    """A file of the set that is not as it was drawn; None: there is none, or this process has looked before."""
    key = (folder, folder.stat().st_ino)
    if key in _compared:
        return None
    try:
        contents = json.loads((folder / CONTENTS).read_bytes())
        files = dict(contents.items())
    except (OSError, ValueError, AttributeError):  # none in a set that an older version drew
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
    """Put each file of ``draft`` in the place of one in ``final`` that differs. Others may be reading the set."""
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
    """Remove drafts of killed processes: those that got no new file for an hour, and that nobody holds; for a clock
    that is set makes any draft look old.
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
    """Lock the folder, as long as this process lives."""
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
    street = _Street(spec)
    # Camera by camera, so that one background is in memory at a time.
    items: dict[str, list[dict[str, Any]]] = {}
    for plan in sorted((*train, *test), key=lambda plan: (plan.camera, plan.key)):
        image, items[plan.key] = street.render(plan)
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


def plan_images(spec: SyntheticStreet) -> tuple[list[_Plan], list[_Plan]]:
    """What the training and the test images show. Every class is in at least one training image."""
    rng = np.random.default_rng((spec.seed, 0))
    shares = np.array(_SHARES)
    mixes = rng.dirichlet(_CONCENTRATION * shares, size=len(GROUP_OF)) + 0.02 * shares
    local = CLASSES.index(_LOCAL_CLASS)
    for camera, group in enumerate(GROUP_OF):
        mixes[camera, local] = mixes[camera, local] + 0.15 if group == _LOCAL_GROUP else 0.0
    mixes /= mixes.sum(axis=1, keepdims=True)

    def draw(total: int, least: int, first: int) -> list[_Plan]:
        counts = divide(total, STREET_IMAGES, least=least)
        cameras = rng.permutation(np.repeat(np.arange(len(counts)), counts))
        plans = []
        for number, camera in enumerate(cameras, first):
            count = 1 + int(rng.choice(len(_OBJECTS), p=_OBJECTS))
            labels = rng.choice(len(CLASSES), size=count, p=mixes[camera])
            plans.append(_Plan(f"{number:06d}", int(camera), tuple(int(label) for label in labels)))
        return plans

    train = draw(spec.train_images, 1, 1)
    test = draw(spec.test_images, 1 if spec.test_images >= len(GROUP_OF) else 0, spec.train_images + 1)
    return _with_every_class(train), test


def _with_every_class(plans: list[_Plan]) -> list[_Plan]:
    """Small sets may miss a class: it then becomes the last object of an image that can spare one."""
    plans = list(plans)
    for label, name in enumerate(CLASSES):
        counts = np.bincount([other for plan in plans for other in plan.labels], minlength=len(CLASSES))
        if counts[label]:
            continue
        for number, plan in enumerate(plans):
            allowed = name != _LOCAL_CLASS or GROUP_OF[plan.camera] == _LOCAL_GROUP
            if allowed and counts[plan.labels[-1]] > 1:
                plans[number] = _Plan(plan.key, plan.camera, (*plan.labels[:-1], label))
                break
    return plans


class _Street:
    """Draws planned images, keeping the last camera's background."""

    def __init__(self, spec: SyntheticStreet) -> None:
        self.spec = spec
        self._camera = -1
        self._background: NDArray[np.int16] = np.zeros((0, 0, 3), dtype=np.int16)
        self._near = 1.0
        noise = np.random.default_rng((spec.seed, 2))
        self._noise = noise.normal(0, 4, (spec.height + 32, spec.width + 32, 1)).astype(np.int16)

    def _look_through(self, camera: int) -> None:
        if camera != self._camera:
            rng = np.random.default_rng((self.spec.seed, 1, camera))
            self._near = float(rng.uniform(0.75, 1.2))
            self._background = drawing.background(self.spec.width, self.spec.height, rng)
            self._camera = camera

    def render(self, plan: _Plan) -> tuple[Image.Image, list[dict[str, Any]]]:
        """The image and its objects as label items, farthest first."""
        self._look_through(plan.camera)
        rng = np.random.default_rng((self.spec.seed, 3, int(plan.key)))
        gain = np.int16(rng.integers(39, 75))  # of 64: time of day; 255 * 75 stays within int16
        dy, dx = rng.integers(0, 32, size=2)
        noise = self._noise[dy : dy + self.spec.height, dx : dx + self.spec.width]
        pixels = np.clip(((self._background * gain) >> 6) + noise, 0, 255).astype(np.uint8)
        image = Image.fromarray(pixels)
        for _ in range(int(rng.integers(0, 4))):
            tall = max(6, round(self.spec.height * rng.uniform(0.08, 0.28)))
            person = drawing.passer_by(max(3, round(tall * 0.36)), tall, rng)
            left = int(rng.integers(-tall // 4, self.spec.width))
            top = round(self.spec.height * rng.uniform(0.25, 0.9)) - tall // 2
            image.paste(person, (left, top), person)
        items = []
        for label, (left, top, width, height) in self._place(plan.labels, rng):
            thing = drawing.cut_out(CLASSES[label], width, height, rng)
            image.paste(thing, (left, top), thing)
            right, bottom = min(self.spec.width, left + width), min(self.spec.height, top + height)
            box = (max(0, left), max(0, top), right, bottom)
            items.append({"class": CLASSES[label], "bbox": [str(edge) for edge in box]})
        return image, items

    def _place(self, labels: Sequence[int], rng: np.random.Generator) -> list[tuple[int, tuple[int, int, int, int]]]:
        """A label and left, top, width, height in pixels for each object that finds room, farthest first."""
        placed: list[tuple[int, tuple[int, int, int, int]]] = []
        for label in labels:
            for _ in range(40):
                foot = float(rng.uniform(0.3, 1.08))  # where it stands, in heights from the top: lower is nearer
                scale = self._near * (0.45 + 0.75 * foot) * float(np.exp(rng.normal(0, 0.2)))
                stretch = float(np.exp(rng.normal(0, 0.1)))
                width = max(6, round(_SIZES[label][0] * scale * stretch * self.spec.width / 704))
                height = max(6, round(_SIZES[label][1] * scale / stretch * self.spec.height / 576))
                left = round(float(rng.uniform(-0.25 * width, self.spec.width - 0.75 * width)))
                top = round(foot * self.spec.height) - height
                bottom = min(self.spec.height, top + height)
                in_view = bottom - max(0, top) >= 0.7 * height and width < 0.8 * self.spec.width
                box = (left, top, width, height)
                if in_view and _mostly_visible(box, [other for _, other in placed]):
                    placed.append((label, box))
                    break
        return sorted(placed, key=lambda item: item[1][1] + item[1][3])


def _mostly_visible(box: tuple[int, int, int, int], others: Sequence[tuple[int, int, int, int]]) -> bool:
    """Whether all boxes that overlap one, nearer or not, cover no more than ``_MOST_HIDDEN`` of it."""
    boxes = [*others, box]
    for number, (left, top, width, height) in enumerate(boxes):
        covered = 0
        for other_number, (x, y, w, h) in enumerate(boxes):
            if other_number != number:
                across = min(left + width, x + w) - max(left, x)
                down = min(top + height, y + h) - max(top, y)
                covered += max(0, across) * max(0, down)
        if covered > _MOST_HIDDEN * width * height:
            return False
    return True
