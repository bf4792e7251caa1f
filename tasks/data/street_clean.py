"""Federated Street's clean division: near-duplicates of a training image are no longer in the test set.

``street_clean.json`` lists the images that change sides, by their numbers. ``to_training`` gives for each moved test
image a training image of the same camera, whose device it takes, because published test images have no device. Both
splits, 5 and 20 devices, use this list. :func:`tasks.data.whole_groups.whole_groups` has made it from the split of 20
devices, which nest in the 5. To make it again:
``python -m tasks.data.street_clean FOLDER > tasks/data/street_clean.json``.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from tasks.data.entries import Faults
from tasks.data.holdout import hashes_of
from tasks.data.notes import named
from tasks.data.samples import FederatedData
from tasks.data.street import load_street
from tasks.data.whole_groups import Moves, apply_moves, every_test_image, whole_groups

LIST = "street_clean.json"


@dataclass(frozen=True)
class MovedNumbers:
    """The numbers of the images that change sides, in order."""

    to_test: tuple[str, ...]
    to_training: dict[str, str]

    @property
    def text(self) -> str:
        """The JSON of the list."""
        return json.dumps({"to_test": self.to_test, "to_training": self.to_training}, indent=1) + "\n"


def moved_numbers() -> MovedNumbers:
    """Return the committed list."""
    document = json.loads(files("tasks.data").joinpath(LIST).read_text(encoding="utf-8"))
    return MovedNumbers(tuple(document["to_test"]), dict(document["to_training"]))


def clean_division(data: FederatedData, root: Path, expected_digest: str | None, faults: Faults) -> FederatedData:
    """Return the published ``data`` in the clean division.

    Its digest covers the published content and the list of moved images, so it is not the digest of the published
    division. ``expected_digest`` may be either of the two.

    Raises:
        DataError: an image of the list is not in ``data``, or the content is not the expected one, unless ``faults``
            collects mistakes.
    """
    numbers = moved_numbers()
    digest = hashlib.sha256(f"{data.digest}\n{numbers.text}".encode()).hexdigest()
    if expected_digest not in (None, data.digest, digest):
        faults.add(
            f"{root}: data set {data.name!r} is not the one that was asked for: expected content digest "
            f"{expected_digest}, found {data.digest} (in the clean division {digest})"
        )
    train = {sample.key: sample for samples in data.train.values() for sample in samples}
    test = {sample.key: sample for sample in every_test_image(data)}
    for part, known, listed in (
        ("training", train, (*numbers.to_test, *numbers.to_training.values())),
        ("test", test, tuple(numbers.to_training)),
    ):
        missing = sorted({number for number in listed if number not in known})
        if missing:
            faults.add(
                f"{root}: data.division: clean needs the published images of Federated Street, found no {part} image "
                f"{named(missing)}"
            )
    pairs = numbers.to_training.items()
    moves = Moves(
        to_test=tuple(train[number] for number in numbers.to_test if number in train),
        to_training={test[one]: train[like] for one, like in pairs if one in test and like in train},
    )
    return replace(apply_moves(data, moves), digest=digest)


def find_moved_numbers(root: Path, cache: Path) -> MovedNumbers:
    """Return the list for the published Federated Street in the folder ``root``, made anew.

    cache: a folder for the images' hashes, because they are slow to compute.

    Raises:
        DataError: something in the data set is wrong.
    """
    data = load_street(root, 20, name="street", expected_digest=None)
    images = [*(sample for samples in data.train.values() for sample in samples), *every_test_image(data)]
    moves = whole_groups(data, hashes_of(images, cache / f"{data.digest}.json", Faults()))
    pairs = sorted((sample.key, like.key) for sample, like in moves.to_training.items())
    return MovedNumbers(tuple(sorted(sample.key for sample in moves.to_test)), dict(pairs))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as hashes:
        sys.stdout.write(find_moved_numbers(Path(sys.argv[1]), Path(hashes)).text)
