"""Hold out a part of each client's training images, so that a model can be scored on images it was not trained on.

A client's draw depends on its own images, its id and the seed alone. Near-duplicates (:mod:`tasks.data.similar`), as
neighbouring frames of a camera are, stay on one side: a model trained on one of them would be scored too well.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tasks.data.entries import Faults
from tasks.data.samples import FederatedData, ImageSample
from tasks.data.similar import NEAR_BITS, difference_hash, groups_of, is_uniform, thumbnail
from tasks.errors import DataError
from tasks.spec.data import Holdout

_HASH = re.compile("[0-9a-f]{64}")
# By an image's content: its difference hash in hex; None if the image is of one colour and is like no other.
Hashes = Mapping[str, str | None]


def hold_out(data: FederatedData, spec: Holdout, *, cache: Path, faults: Faults) -> FederatedData:
    """Move a part of each client's training images to ``holdout``. Both parts keep the images' order.

    cache: a folder for the images' hashes, because they are slow to compute: every image is decoded.

    Raises:
        DataError: an image cannot be decoded, unless ``faults`` collects mistakes.
    """
    hashes = hashes_of(
        [sample for samples in data.train.values() for sample in samples], cache / f"{data.digest}.json", faults
    )
    held = {client: drawn(client, samples, spec, hashes) for client, samples in data.train.items()}
    return replace(
        data,
        train={client: _chosen(samples, held[client], False) for client, samples in data.train.items()},
        holdout={client: _chosen(samples, held[client], True) for client, samples in data.train.items()},
    )


def drawn(client: str, samples: Sequence[ImageSample], spec: Holdout, hashes: Hashes) -> set[int]:
    """Return the indices of the images that ``client`` holds out.

    Groups of near-duplicates are taken in a drawn order. A group is taken if that brings the number of images closer to
    the fraction, and leaves an image for training.
    """
    members: dict[int, list[int]] = {}
    for index, group in enumerate(similar_groups(samples, hashes)):
        members.setdefault(group, []).append(index)
    groups = list(members.values())
    number = int.from_bytes(hashlib.sha256(client.encode()).digest()[:8], "big")
    order = np.random.Generator(np.random.PCG64(np.random.SeedSequence((spec.seed, number)))).permutation(len(groups))
    wanted = int(spec.fraction * len(samples) + 0.5)
    taken: set[int] = set()
    for place in order:
        count = len(taken) + len(groups[place])
        if abs(count - wanted) < wanted - len(taken) and count < len(samples):
            taken.update(groups[place])
    return taken


def similar_groups(samples: Sequence[ImageSample], hashes: Hashes, bits: int = NEAR_BITS) -> list[int]:
    """Return a number for each image. Near-duplicates and images of the same bytes have the same number.

    Hashes of near-duplicates differ in at most ``bits`` bits. A chain of near-duplicates is one group.
    """
    first: dict[str, int] = {}
    for index, sample in enumerate(samples):
        first.setdefault(sample.content, index)
    group = dict(first)
    found = {content: value for content in first if (value := hashes.get(content)) is not None}
    if found:
        contents = list(found)
        words = np.array([np.frombuffer(bytes.fromhex(found[content]), np.uint64) for content in contents])
        group |= {
            content: first[contents[place]] for content, place in zip(contents, groups_of(words, bits), strict=True)
        }
    return [group[sample.content] for sample in samples]


def _chosen(samples: Sequence[ImageSample], held: set[int], inside: bool) -> tuple[ImageSample, ...]:
    return tuple(sample for index, sample in enumerate(samples) if (index in held) == inside)


def hashes_of(samples: Iterable[ImageSample], file: Path, faults: Faults) -> Hashes:
    """Return the hashes of ``samples`` by content: those that ``file`` has, and new ones, which ``file`` then has too.

    Raises:
        DataError: an image cannot be decoded, unless ``faults`` collects mistakes. It then has no hash.
    """
    known = _read(file)
    images = {sample.content: sample for sample in samples}
    missing = images.keys() - known.keys()
    if not missing:
        return known
    for content, sample in images.items():
        if content in missing:
            try:
                grey = thumbnail(sample.path)
            except DataError as error:
                faults.add(str(error))
                continue
            known[content] = None if is_uniform(grey) else difference_hash(grey).tobytes().hex()
    _write(file, known)
    return known


def _read(file: Path) -> dict[str, str | None]:
    """Return the hashes in ``file``; none if it is missing or damaged."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    usable = (value is None or (isinstance(value, str) and _HASH.fullmatch(value)) for value in found.values())
    return found if all(usable) else {}


def _write(file: Path, hashes: Hashes) -> None:
    """Keep ``hashes`` for the next process. A folder that cannot be written to costs time alone."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as opened:
                json.dump(hashes, opened)
            os.replace(draft, file)
        except OSError:
            os.unlink(draft)
            raise
