"""Pictures for tests that compare images with each other."""

from __future__ import annotations

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 96, 64


def picture(seed: int) -> Image.Image:
    """Return coarse noise. It differs much from that of any other seed, and JPEG changes it little."""
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
