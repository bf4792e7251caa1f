"""Detect objects in image files: find the files, run the detector, and write the drawn copies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tasks.data.entries import file_exists, is_utf8, without_address
from tasks.data.image_cache import to_input
from tasks.data.pixels import IMAGE_SUFFIXES, UNREADABLE, has_orientation, read_rgb
from tasks.detectors.base import Detector
from tasks.documents.regular_file import read_regular
from tasks.errors import DataError, SpecError
from tasks.metrics.detections import ImageDetections
from tasks.spec.data import Exif
from tasks.training.evaluation import in_original_pixels

_JPEG = frozenset({".jpeg", ".jpg"})


@dataclass(frozen=True)
class Picture:
    """A decoded file, RGB. ``turned``: EXIF has an orientation other than upright, but the pixels are as stored."""

    path: Path
    image: Image.Image
    turned: bool


def image_files(paths: Iterable[Path]) -> list[Path]:
    """Return the files that ``paths`` name, each once. A folder stands for the images directly in it, sorted by name.

    A named pipe or the like is among them, so that :func:`read_picture` refuses it.

    Raises:
        DataError: a folder has no images, or cannot be read.
    """
    files: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            files[path] = None
            continue
        try:
            named = [item for item in path.iterdir() if item.suffix.lower() in IMAGE_SUFFIXES]
            inside = sorted(item for item in named if file_exists(item))
        except OSError as error:
            raise DataError(f"{path}: the folder cannot be read: {error.strerror}") from None
        if not inside:
            raise DataError(f"{path}: expected images in this folder ({', '.join(sorted(IMAGE_SUFFIXES))}), found none")
        files.update(dict.fromkeys(inside))
    return list(files)


def drawn_files(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Return the path of each image's drawn copy in ``folder``. JPEG stays JPEG, and all others become PNG.

    Images of the same name from several folders get -2, -3, … in the order of ``files``.

    Raises:
        SpecError: a copy would overwrite one of the images.
    """
    originals = {file.resolve() for file in files}
    targets: dict[Path, Path] = {}
    for file in files:
        suffix = file.suffix if file.suffix.lower() in _JPEG else ".png"
        target, number = folder / f"{file.stem}{suffix}", 1
        while target in targets.values():
            number += 1
            target = folder / f"{file.stem}-{number}{suffix}"
        if target.resolve() in originals:
            raise SpecError(f"--out {folder}: expected another folder, the image {target} would be overwritten")
        targets[file] = target
    return targets


def read_picture(path: Path, exif: Exif = "as-stored") -> Picture:
    """Read the image of a file as training reads it, with the training data's setting of ``exif``.

    Raises:
        DataError: the file is missing or cannot be decoded, or its name is not in UTF-8.
    """
    if not is_utf8(str(path)):
        raise DataError(f"{str(path)!r}: expected a file name in UTF-8; rename the file")
    try:
        data = read_regular(path)
        return Picture(path, read_rgb(data, exif), exif == "as-stored" and has_orientation(data))
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.strerror:
            raise DataError(f"{path}: the image cannot be read: {error.strerror}") from None
        raise DataError(f"{path}: expected an image that can be decoded: {without_address(error)}") from None


@torch.inference_mode()
def detect(
    detector: Detector, image: Image.Image, *, score: float, nms_iou: float, max_detections: int, device: str
) -> ImageDetections:
    """Return the detections in an RGB image, with boxes in pixels of ``image``.

    ``detector`` is put into evaluation mode on ``device``. The image is stretched to the detector's input exactly as in
    training and evaluation. Detections have a score above ``score``. After non-maximum suppression at ``nms_iou``, at
    most ``max_detections`` of each class are left.
    """
    torch_device = torch.device(device)
    detector.to(torch_device).eval()
    pixels = torch.from_numpy(to_input(image, width=detector.width, height=detector.height))
    outputs = detector(pixels[None].to(torch_device))
    (found,) = detector.predict(outputs, score_threshold=score, nms_iou=nms_iou, max_detections=max_detections)
    return in_original_pixels(found, detector, width=image.width, height=image.height)


def score_below(score: float) -> float:
    """Return a threshold of two digits that a detection of this score, which is above 0, just passes."""
    unit = 10.0 ** (math.floor(math.log10(score)) - 1)
    units = math.floor(score / unit)
    below = float(f"{units * unit:.2g}")
    return below if below < score else float(f"{(units - 1) * unit:.2g}")


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a drawn copy in the format of the path's suffix.

    Raises:
        DataError: the file cannot be written.
    """
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if path.suffix.lower() in _JPEG else {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **options)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: the picture cannot be written: {getattr(error, 'strerror', None) or error}") from None
