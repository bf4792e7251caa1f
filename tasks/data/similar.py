"""Find images that look alike: a difference hash, and the nearest of many hashes by Hamming distance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.data.entries import without_address
from tasks.data.pixels import UNREADABLE, read_rgb
from tasks.documents.regular_file import read_regular
from tasks.errors import DataError

HASH_SIDE = 16  # 16 x 16 comparisons: 256 bits
NEAR_BITS = 16
"""Two images count as near-duplicates if their 256-bit hashes differ in at most this many bits.

In Federated Street, frames of one camera a few seconds to minutes apart differ in 3 to about 25 bits, and images of
different cameras in 84 or more (median 124). Frames that differ in 16 bits still have the same objects in the same
places.
"""

_BLOCK = 512  # rows compared at a time: bounds the memory


def thumbnail(path: Path) -> NDArray[np.uint8]:
    """Return grey levels [16, 17] of an image, each the mean of its part.

    The whole image is decoded. Damaged parts of a JPEG's data decode to grey blocks and are not an error.

    Raises:
        DataError: the file cannot be read or decoded.
    """
    try:
        image = read_rgb(read_regular(path))
    except UNREADABLE as error:
        raise DataError(f"{path}: expected an image that can be decoded: {without_address(error)}") from None
    return np.asarray(image.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX))


def difference_hash(grey: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the dHash of a thumbnail as uint64 [4].

    It has a bit for each two neighbours in a row, set if the left one is brighter.
    """
    return np.packbits(grey[:, :-1] > grey[:, 1:]).view(np.uint64)


def is_uniform(grey: NDArray[np.uint8]) -> bool:
    """Return whether so few neighbours differ that any two such images would count as near-duplicates."""
    return int((grey[:, :-1] != grey[:, 1:]).sum()) <= NEAR_BITS


def _distances(queries: NDArray[np.uint64], hashes: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """Return the bits in which each query [n, 4] differs from each of ``hashes`` [m, 4], as [n, m]."""
    bits = np.zeros((len(queries), len(hashes)), dtype=np.uint16)
    for word in range(queries.shape[1]):
        bits += np.bitwise_count(queries[:, word, None] ^ hashes[None, :, word])
    return bits


def nearest(queries: NDArray[np.uint64], hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return, for each query [n, 4], the index of the nearest of ``hashes`` [m, 4], m >= 1, and its distance in bits.

    Of equally near hashes, the first counts.
    """
    indices = np.zeros(len(queries), dtype=np.int64)
    distances = np.zeros(len(queries), dtype=np.int64)
    for start in range(0, len(queries), _BLOCK):
        block = slice(start, start + _BLOCK)
        bits = _distances(queries[block], hashes)
        indices[block] = bits.argmin(axis=1)
        distances[block] = bits.min(axis=1)
    return indices, distances


def groups_of(hashes: NDArray[np.uint64], bits: int = NEAR_BITS) -> NDArray[np.int64]:
    """Return the group of each of ``hashes`` [n, 4], named by its first member's index.

    Two hashes are in one group if they, or the neighbours in a chain between them, differ in at most ``bits`` bits.
    """
    groups = np.arange(len(hashes))
    for start in range(0, len(hashes), _BLOCK):
        for row in _distances(hashes[start : start + _BLOCK], hashes):
            joined = np.unique(groups[row <= bits])
            if len(joined) > 1:
                groups[np.isin(groups, joined)] = joined[0]
    return groups
