"""An image as a detector's input: read, decoded, and kept in memory."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.data.entries import without_address
from tasks.data.pixels import UNREADABLE, UPRIGHT, read_rgb
from tasks.data.samples import ImageSample
from tasks.documents.regular_file import read_regular
from tasks.errors import ClientError


def read_sample(sample: ImageSample) -> Image.Image:
    """Return the whole image of a sample in mode RGB. The sample's size and boxes refer to this image.

    Raises:
        ClientError: the file cannot be read or decoded, or has changed since the data set was loaded.
    """
    try:
        data = read_regular(sample.path)
    except OSError as error:
        raise ClientError(f"{sample.path}: the image cannot be read: {error.strerror}") from None
    try:
        image = read_rgb(data, "as-stored" if sample.turn == UPRIGHT else "applied")
    except UNREADABLE as error:
        raise ClientError(f"{sample.path}: expected an image that can be decoded: {without_address(error)}") from None
    if hashlib.sha256(data).hexdigest() != sample.content:
        raise ClientError(f"{sample.path}: the image has changed since the data set was loaded")
    return image


def decode(sample: ImageSample, *, width: int, height: int) -> NDArray[np.uint8]:
    """Return the image as uint8 [3, height, width], RGB, stretched to that size without padding (bilinear).

    Raises:
        ClientError: as :func:`read_sample`.
    """
    return to_input(read_sample(sample), width=width, height=height)


def to_input(image: Image.Image, *, width: int, height: int) -> NDArray[np.uint8]:
    """Return a detector's input for an image in mode RGB: uint8 [3, height, width], stretched as by :func:`decode`."""
    pixels = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(pixels).transpose(2, 0, 1))


# Content, turn, width and height.
ImageKey = tuple[str, int, int, int]


def image_key(sample: ImageSample, width: int, height: int) -> ImageKey:
    """Return what names the image of ``sample`` at this size: equal keys, equal pixels."""
    return sample.content, sample.turn, width, height


class ImageCache:
    """Decoded images of one process, up to a size in bytes (0: none). The least recently used are dropped first.

    The key of an image is its content and turn, so one cache serves several clients and both splits. A cache that is
    sent to another process arrives empty.
    """

    def __init__(self, megabytes: float) -> None:
        self.limit = int(megabytes * 1_000_000)
        self.bytes = 0
        self._images: OrderedDict[ImageKey, NDArray[np.uint8]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._images)

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit, "bytes": 0, "_images": OrderedDict()}

    def find(self, sample: ImageSample, *, width: int, height: int) -> NDArray[np.uint8] | None:
        """Return the image if it is in memory, else None. The caller must not write to it."""
        key = image_key(sample, width, height)
        image = self._images.get(key)
        if image is not None:
            self._images.move_to_end(key)
        return image

    def get(self, sample: ImageSample, *, width: int, height: int) -> NDArray[np.uint8]:
        """Return the image as :func:`decode` does. The caller must not write to it.

        Raises:
            ClientError: as :func:`decode`.
        """
        image = self.find(sample, width=width, height=height)
        if image is not None:
            return image
        image = decode(sample, width=width, height=height)
        if image.nbytes <= self.limit:
            self._images[image_key(sample, width, height)] = image
            self.bytes += image.nbytes
            while self.bytes > self.limit:
                self.bytes -= self._images.popitem(last=False)[1].nbytes
        return image
