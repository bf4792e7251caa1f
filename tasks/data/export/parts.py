"""What the writers of all forms share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tasks.data.samples import FederatedData, ImageSample, has_global_test_set
from tasks.errors import DataError

# Images, each with its device; None for those of a global test set.
Owned = list[tuple[str | None, ImageSample]]


def train_and_test(data: FederatedData) -> tuple[Owned, Owned]:
    """Return the training images and the test images, by device. A global test set is there once."""
    train: Owned = [(device, sample) for device, samples in data.train.items() for sample in samples]
    if has_global_test_set(data):
        return train, [(None, sample) for sample in next(iter(data.test.values()))]
    return train, [(device, sample) for device, samples in data.test.items() for sample in samples]


def classes_unless_read(data: FederatedData) -> dict[str, list[str]]:
    """Return the field ``classes``, unless a reader takes the same ones from the training objects' names."""
    present = {data.classes[label] for own in data.train.values() for one in own for label in one.labels.tolist()}
    return {} if list(data.classes) == sorted(present) else {"classes": list(data.classes)}


def name_with_device(device: str | None, sample: ImageSample) -> str:
    """Return the image's file name, with its device and an underscore before it.

    Raises:
        DataError: the device has an underscore.
    """
    if device is not None and "_" in device:
        raise DataError(f"device {device}: expected a name without _, which ends the device in the names of images")
    return sample.path.name if device is None else f"{device}_{sample.path.name}"


def write_labels(path: Path, text: str, sample: ImageSample) -> None:
    """Write the label file of an image, and its folder if it is missing.

    Raises:
        DataError: another image has that file.
    """
    if path.exists():
        raise DataError(f"{sample.path}: expected a file name of its own, found another image that has {path.name}")
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write a text file, and its folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def refuse_difficult(samples: Iterable[ImageSample], form: str) -> None:
    """
    Raises:
        DataError: an image has a difficult object.
    """
    for sample in samples:
        if sample.difficult is not None and sample.difficult.any():
            raise DataError(f"{sample.path}: expected no difficult objects, which {form}'s form does not have")


def listed_regions(sample: ImageSample) -> list[tuple[int, list[float]]]:
    """Return the label and the box of each ignore region, in order. The label may be ``ANY_CLASS``."""
    if sample.regions is None:
        return []
    return list(zip(sample.regions.labels.tolist(), sample.regions.boxes.tolist(), strict=True))


def refuse_regions(data: FederatedData, form: str) -> None:
    """
    Raises:
        DataError: an image has ignore regions.
    """
    for own in (*data.train.values(), *data.test.values()):
        for sample in own:
            if sample.regions is not None and len(sample.regions):
                raise DataError(
                    f"{sample.path}: expected no ignore regions, which are not written in {form}'s form, found "
                    f"{len(sample.regions)}; the forms of COCO, BDD100K and VisDrone have them"
                )


def plain(value: float) -> int | float:
    """Return a whole number as an int, because most forms write it without a point."""
    return int(value) if value.is_integer() else value
