"""Plan and draw the images of the synthetic street, from the specification's seed alone.

All tables stand in front of one group's cameras. Class mixes differ by device as in Hsu et al. (arXiv 1909.06335): a
Dirichlet draw around the classes' shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.data import drawing
from tasks.data.partition import divide
from tasks.spec.data import SyntheticStreet

CLASSES = tuple(drawing.PAINTERS)

# Federated Street's training images by device_1_id (1 to 20), and the device_2_id that each belongs to.
STREET_IMAGES = (163, 76, 50, 39, 52, 14, 38, 8, 34, 13, 18, 39, 32, 14, 37, 30, 27, 32, 15, 34)
GROUP_OF = (2, 4, 5, 2, 1, 1, 1, 1, 1, 2, 2, 2, 1, 4, 3, 2, 2, 4, 2, 1)

# Per class: share of all boxes, and middle width and height in pixels of a 704 x 576 image. Sizes are close
# to the published medians. Shares are flatter than the published ones (4 % to 26 %), so that a short run
# meets every class often enough to learn it.
_SHARES = (0.13, 0.14, 0.17, 0.19, 0.12, 0.16, 0.09)
_SIZES = ((56, 62), (58, 60), (56, 70), (132, 102), (50, 78), (180, 124), (118, 84))
_CONCENTRATION = 4.0  # of the Dirichlet draw: a lower one is more skewed
_LOCAL_CLASS, _LOCAL_GROUP = "table", 2
# Chance of 1, 2, ... objects in an image; 2.7 on average.
_OBJECTS = (0.34, 0.24, 0.17, 0.10, 0.06, 0.05, 0.03, 0.01)
_MOST_HIDDEN = 0.4  # part of an object's box that other boxes may cover


@dataclass(frozen=True)
class ScenePlan:
    """What one image will show: its camera (0 to 19) and its objects' classes."""

    key: str
    camera: int
    labels: tuple[int, ...]


class _DrawnObject(NamedTuple):
    """An object in an image: its class's number, and its box in pixels, which may reach beyond the image."""

    label: int
    left: int
    top: int
    width: int
    height: int

    @property
    def bottom(self) -> int:
        return self.top + self.height


def plan_images(spec: SyntheticStreet) -> tuple[list[ScenePlan], list[ScenePlan]]:
    """Plan the training and the test images. Every class is in at least one training image."""
    rng = np.random.default_rng((spec.seed, 0))
    shares = np.array(_SHARES)
    mixes = rng.dirichlet(_CONCENTRATION * shares, size=len(GROUP_OF)) + 0.02 * shares
    local = CLASSES.index(_LOCAL_CLASS)
    for camera, group in enumerate(GROUP_OF):
        mixes[camera, local] = mixes[camera, local] + 0.15 if group == _LOCAL_GROUP else 0.0
    mixes /= mixes.sum(axis=1, keepdims=True)

    def draw(total: int, least: int, first: int) -> list[ScenePlan]:
        counts = divide(total, STREET_IMAGES, least=least)
        cameras = rng.permutation(np.repeat(np.arange(len(counts)), counts))
        plans = []
        for number, camera in enumerate(cameras, first):
            count = 1 + int(rng.choice(len(_OBJECTS), p=_OBJECTS))
            labels = rng.choice(len(CLASSES), size=count, p=mixes[camera])
            plans.append(ScenePlan(f"{number:06d}", int(camera), tuple(int(label) for label in labels)))
        return plans

    train = draw(spec.train_images, 1, 1)
    test = draw(spec.test_images, 1 if spec.test_images >= len(GROUP_OF) else 0, spec.train_images + 1)
    return _with_every_class(train), test


def _with_every_class(plans: list[ScenePlan]) -> list[ScenePlan]:
    """Return the plans with every class in them.

    A class that a small set misses replaces the last object of an image, if another object has that object's class.
    """
    plans = list(plans)
    for label, name in enumerate(CLASSES):
        counts = np.bincount([other for plan in plans for other in plan.labels], minlength=len(CLASSES))
        if counts[label]:
            continue
        for number, plan in enumerate(plans):
            allowed = name != _LOCAL_CLASS or GROUP_OF[plan.camera] == _LOCAL_GROUP
            if allowed and counts[plan.labels[-1]] > 1:
                plans[number] = ScenePlan(plan.key, plan.camera, (*plan.labels[:-1], label))
                break
    return plans


class SceneRenderer:
    """Draws planned images. It keeps the last camera's background for the next image."""

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

    def render(self, plan: ScenePlan) -> tuple[Image.Image, list[dict[str, Any]]]:
        """Draw an image. Return it and its objects as label items, farthest first."""
        self._look_through(plan.camera)
        rng = np.random.default_rng((self.spec.seed, 3, int(plan.key)))
        gain = np.int16(rng.integers(39, 75))  # brightness in 64ths, for the time of day; 255 * 75 stays within int16
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
        for placed in self._scatter(plan.labels, rng):
            name = CLASSES[placed.label]
            thing = drawing.cut_out(name, placed.width, placed.height, rng)
            image.paste(thing, (placed.left, placed.top), thing)
            right = min(self.spec.width, placed.left + placed.width)
            box = (max(0, placed.left), max(0, placed.top), right, min(self.spec.height, placed.bottom))
            items.append({"class": name, "bbox": [str(edge) for edge in box]})
        return image, items

    def _scatter(self, labels: Sequence[int], rng: np.random.Generator) -> list[_DrawnObject]:
        """Return the objects that find room, farthest first."""
        found: list[_DrawnObject] = []
        for label in labels:
            for _ in range(40):
                foot = float(rng.uniform(0.3, 1.08))  # where the object stands, in image heights from the top
                scale = self._near * (0.45 + 0.75 * foot) * float(np.exp(rng.normal(0, 0.2)))
                stretch = float(np.exp(rng.normal(0, 0.1)))
                width = max(6, round(_SIZES[label][0] * scale * stretch * self.spec.width / 704))
                height = max(6, round(_SIZES[label][1] * scale / stretch * self.spec.height / 576))
                left = round(float(rng.uniform(-0.25 * width, self.spec.width - 0.75 * width)))
                top = round(foot * self.spec.height) - height
                placed = _DrawnObject(label, left, top, width, height)
                in_view = min(self.spec.height, placed.bottom) - max(0, top) >= 0.7 * height
                if in_view and width < 0.8 * self.spec.width and _mostly_visible([*found, placed]):
                    found.append(placed)
                    break
        return sorted(found, key=lambda placed: placed.bottom)


def _mostly_visible(objects: Sequence[_DrawnObject]) -> bool:
    """Return whether at most ``_MOST_HIDDEN`` of each object's box is covered by other boxes, nearer or not."""
    for number, one in enumerate(objects):
        covered = 0
        for other_number, other in enumerate(objects):
            if other_number != number:
                across = min(one.left + one.width, other.left + other.width) - max(one.left, other.left)
                down = min(one.bottom, other.bottom) - max(one.top, other.top)
                covered += max(0, across) * max(0, down)
        if covered > _MOST_HIDDEN * one.width * one.height:
            return False
    return True
