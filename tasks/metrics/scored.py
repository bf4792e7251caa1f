"""The detections and true objects of every image that a model was scored on, in memory and as one object of the store.

The coordinator keeps them for the best and the last rounds (``rounds/0007/detections.npz``), so that a report needs no
model and no second evaluation. ``flows.stored.detections.read_scored`` reads them from the store. For example, to
draw new samples of the test images::

    scored = read_scored(objects, layout, record)  # None if the store does not have them
    for part in scored.sets:
        matches = part.matches(scored)  # one row a detection, with its image's index and whether it is right
        chosen = random.integers(0, len(part.truth), len(part.truth))
        # how often each detection's image was drawn: np.bincount(chosen, minlength=len(part.truth))[matches.images]

The figures of a round are means over ``sets``, weighted by images (:mod:`tasks.metrics.over_clients`). With one global
test set there is one set, and its figure is the round's.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from tasks.errors import DataError, SpecError
from tasks.metrics.detections import ImageDetections, in_order, pack, unpack
from tasks.metrics.matching import Matches, match_detections
from tasks.metrics.truth import Truth, pack_truth, unpack_truth
from tasks.spec.base import MOST_CLIENTS, RECORD_VERSION, ClassName, ClientId, Frozen, Sha256, parse
from tasks.spec.training import ScoredOn

# Of an object, unpacked: bytes of all arrays together. A test set of 5,000 images with 300 detections each has 42 MB.
MOST_BYTES = 1 << 30
_ARRAYS = {"detections": ("boxes", "scores", "labels"), "truth": ("boxes", "labels", "difficult")}
_INDEX = "index.json"


class _Set(Frozen):
    clients: tuple[ClientId, ...] = Field(max_length=MOST_CLIENTS)
    on: ScoredOn
    digest: Sha256
    images: Annotated[int, Field(ge=0)]


class _Index(Frozen):
    version: Literal[1] = RECORD_VERSION
    classes: tuple[ClassName, ...]
    score_threshold: float = Field(ge=0, le=1)
    max_detections: int = Field(ge=1)
    personal: bool
    sets: tuple[_Set, ...]


@dataclass(frozen=True, eq=False)
class ScoredImages:
    """The truth and detections of the images that ``clients`` share, by image in the order of the set.

    on, digest: as in the :class:`~tasks.spec.records.EvaluationRecord` of this evaluation. Labels are indices into the
    classes of the :class:`ScoredModel`.
    """

    clients: tuple[str, ...]
    on: ScoredOn
    digest: str
    truth: tuple[Truth, ...]
    detections: tuple[ImageDetections, ...]

    def __len__(self) -> int:
        return len(self.truth)

    def matches(self, scored: ScoredModel) -> Matches:
        """Return which detections are right by VOC's rule at IoU 0.5. scored: the model that they belong to.

        Average precision of these matches is the ``map50_voc10`` of the evaluation's record.
        """
        return scored.compared(self.truth, self.detections)


@dataclass(frozen=True, eq=False)
class ScoredModel:
    """All images that a round's model was scored on.

    score_threshold, max_detections: rules of the evaluation; the latter is the most that count by image and class.
    personal: the method has no complete shared model, so each set has the detections of its client's own model.
    """

    classes: tuple[str, ...]
    score_threshold: float
    max_detections: int
    sets: tuple[ScoredImages, ...]
    personal: bool = False

    def on(self, part: ScoredOn) -> ScoredModel:
        """Return the same with only the sets of a part of the data."""
        return replace(self, sets=tuple(item for item in self.sets if item.on == part))

    @cached_property
    def truth(self) -> tuple[Truth, ...]:
        """The true objects of all sets' images, one set after the other."""
        return tuple(truth for item in self.sets for truth in item.truth)

    @cached_property
    def detections(self) -> tuple[ImageDetections, ...]:
        """The detections in all sets' images, one set after the other."""
        return tuple(found for item in self.sets for found in item.detections)

    @cached_property
    def matches(self) -> Matches:
        """Which detections of all sets are right by VOC's rule at IoU 0.5.

        With several sets these pool the images. A round's figures do not: they are means over the sets.
        """
        return self.compared(self.truth, self.detections)

    def compared(self, truth: Sequence[Truth], detections: Sequence[ImageDetections]) -> Matches:
        """Return which of ``detections`` are right by VOC's rule at IoU 0.5, of those that the evaluation counts."""
        return match_detections(
            truth,
            detections,
            self.classes,
            score_threshold=self.score_threshold,
            max_per_class=self.max_detections,
        )

    def to_bytes(self) -> bytes:
        """Return a ``.npz`` file (numpy's, compressed): a JSON index, and a few flat arrays for each set."""
        index = _Index(
            classes=self.classes,
            score_threshold=self.score_threshold,
            max_detections=self.max_detections,
            personal=self.personal,
            sets=tuple(
                _Set(clients=item.clients, on=item.on, digest=item.digest, images=len(item)) for item in self.sets
            ),
        )
        arrays = {_INDEX: np.frombuffer(index.model_dump_json().encode(), np.uint8)}
        for number, item in enumerate(self.sets):
            packed = {
                "detections": pack(dict(enumerate(item.detections))),
                "truth": pack_truth(dict(enumerate(item.truth))),
            }
            arrays |= {
                f"{number}/{group}/{name}": array for group, found in packed.items() for name, array in found.items()
            }
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str) -> ScoredModel:
        """Return what :meth:`to_bytes` wrote. Messages name the object ``source``.

        Raises:
            DataError: it is damaged, has a newer version, or is anything else.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
            if size > MOST_BYTES:
                raise DataError(f"{source}: expected at most {MOST_BYTES} bytes unpacked, found {size}")
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            document = json.loads(arrays.pop(_INDEX).tobytes())
        except (ValueError, KeyError, EOFError, OSError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"{source}: expected detections in numpy's .npz format, found a damaged file: {error}"
            ) from None
        try:
            index = parse(_Index, document, source=f"{source}: {_INDEX}", newest=RECORD_VERSION)
        except SpecError as error:
            raise DataError(str(error)) from None
        return cls(
            index.classes,
            index.score_threshold,
            index.max_detections,
            tuple(_set(arrays, number, item, source) for number, item in enumerate(index.sets)),
            index.personal,
        )


def _set(arrays: dict[str, np.ndarray], number: int, item: _Set, source: str) -> ScoredImages:
    """
    Raises:
        DataError: an array is missing or does not fit.
    """
    groups = {
        group: {
            name: arrays[f"{number}/{group}/{name}"]
            for name in ("images", "counts", *columns)
            if f"{number}/{group}/{name}" in arrays
        }
        for group, columns in _ARRAYS.items()
    }
    where = f"{source}: set {number}"
    return ScoredImages(
        item.clients,
        item.on,
        item.digest,
        tuple(in_order(unpack_truth(groups["truth"], source=f"{where}: truth"), item.images)),
        tuple(in_order(unpack(groups["detections"], source=f"{where}: detections"), item.images)),
    )
