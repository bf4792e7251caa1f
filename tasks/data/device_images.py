"""Decoded images in the memory of a GPU, so that a turn neither decodes nor copies them in each epoch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from tasks.data.image_cache import ImageCache, ImageKey, decode, image_key
from tasks.data.samples import ImageSample

# Images take at most this part of the GPU memory that is free or already theirs. Models need the rest, and several
# slots may share a GPU.
PART_OF_FREE = 0.25


class DeviceImages:
    """Decoded images of one process on ``device``, kept between turns. The least recently used are dropped first.

    cache: images that are decoded already are copied from there. limit: in bytes; None: a quarter of the GPU's memory
    that is free, or that these images have.
    """

    def __init__(self, cache: ImageCache, device: torch.device, limit: int | None = None) -> None:
        self.device, self.bytes = device, 0
        self._cache, self._limit = cache, limit
        self._images: OrderedDict[ImageKey, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._images)

    def hold(self, samples: Sequence[ImageSample], *, width: int, height: int, threads: int = 1) -> bool:
        """Bring the images of all ``samples`` to the device. Return False, and change nothing, if they do not fit.

        threads: how many decode at a time.

        Raises:
            ClientError: an image cannot be decoded; the message names the file.
        """
        wanted = {image_key(sample, width, height): sample for sample in samples}
        size = 3 * width * height
        if len(wanted) * size > self._most():
            return False
        for key in wanted.keys() & self._images.keys():
            self._images.move_to_end(key)
        missing = [sample for key, sample in wanted.items() if key not in self._images]
        self._drop(self._most() - len(missing) * size)
        found = [self._cache.find(sample, width=width, height=height) for sample in missing]
        undecoded = [sample for sample, pixels in zip(missing, found, strict=True) if pixels is None]
        with ThreadPoolExecutor(threads) as pool:
            decoded = pool.map(lambda sample: decode(sample, width=width, height=height), undecoded)
            for sample, pixels in zip(missing, found, strict=True):
                self._add(sample, torch.from_numpy(next(decoded) if pixels is None else pixels))
        return True

    def get(self, sample: ImageSample, *, width: int, height: int) -> Tensor:
        """Return the image, uint8 [3, height, width] on the device. The caller must not write to it.

        Raises:
            ClientError: it is not held, and cannot be decoded.
        """
        image = self._images.get(image_key(sample, width, height))
        if image is None:
            image = torch.from_numpy(self._cache.get(sample, width=width, height=height)).to(self.device)
        return image

    def _add(self, sample: ImageSample, pixels: Tensor) -> None:
        with torch.inference_mode(False):  # an evaluation may bring an image that training uses later
            image = pixels.to(self.device, copy=True)
        self._images[image_key(sample, pixels.shape[2], pixels.shape[1])] = image
        self.bytes += image.nbytes

    def _drop(self, most: int) -> None:
        """Drop images until at most ``most`` bytes are left."""
        while self._images and self.bytes > most:
            self.bytes -= self._images.popitem(last=False)[1].nbytes

    def _most(self) -> int:
        """Return the most bytes that the images may take now."""
        if self._limit is not None:
            return self._limit
        free, _ = torch.cuda.mem_get_info(self.device)
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return int(PART_OF_FREE * (free + unused + self.bytes))
