"""Decode YOLOv3's raw maps to boxes (arXiv 1804.02767, section 2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.data.transfer import constant

# A raw width or height is cut at this value before exp(): e^4 = 55 times the anchor is more than any box needs.
MAX_LOG_SIZE = 4.0


@dataclass(frozen=True)
class YoloScale:
    """One output map: its stride in pixels, its anchors (width, height) as fractions of the input, and its reach.

    With ``reach`` 1 a centre stays in its own cell, as published; with 2 it may lie half a cell beyond each border.
    The size of the input is computed from the map's, because it may change from batch to batch.
    """

    stride: int
    anchors: tuple[tuple[float, float], ...]
    reach: float = 1.0

    def input_size(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return the width and height in pixels of the input that gives a map of ``shape`` (rows, columns)."""
        rows, columns = shape
        return columns * self.stride, rows * self.stride

    def anchor_tensor(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return anchors [A, 2] in pixels for a map of ``shape`` (rows, columns), float32 on the device of ``like``."""
        width, height = self.input_size(shape)
        pixels = [(part_x * width, part_y * height) for part_x, part_y in self.anchors]
        return constant(pixels, like.device)


def centre_offset(raw: Tensor, reach: float) -> Tensor:
    """Return the offset of a centre from its cell's upper left corner, in cells: σ(t) for ``reach`` 1."""
    return torch.sigmoid(raw) * reach - (reach - 1) / 2


def decode_boxes(raw: Tensor, cells: Tensor, anchors: Tensor, scale: YoloScale) -> Tensor:
    """Return boxes [..., 4] (xmin, ymin, xmax, ymax) in pixels.

    raw: [..., 4] (tx, ty, tw, th). cells: [..., 2] column and row. anchors: [..., 2] in pixels.
    b_xy = (σ(t_xy) + cell) · stride, b_wh = anchor · exp(t_wh).
    """
    centre = (centre_offset(raw[..., :2], scale.reach) + cells) * scale.stride
    size = anchors * torch.exp(raw[..., 2:4].clamp(max=MAX_LOG_SIZE))
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def cell_grid(rows: int, columns: int, like: Tensor) -> Tensor:
    """Return column and row of every cell, float32 [rows, columns, 2]."""
    row, column = torch.meshgrid(
        torch.arange(rows, device=like.device), torch.arange(columns, device=like.device), indexing="ij"
    )
    return torch.stack([column, row], dim=-1).float()


def decode(output: Tensor, scale: YoloScale) -> tuple[Tensor, Tensor]:
    """Return boxes [B, N, 4] in pixels and scores [B, N, C] (objectness times class) of a map [B, A, H, W, 5 + C]."""
    batch, _, rows, columns, _ = output.shape
    anchors = scale.anchor_tensor((rows, columns), output)[None, :, None, None, :]
    boxes = decode_boxes(output[..., :4], cell_grid(rows, columns, output), anchors, scale)
    scores = torch.sigmoid(output[..., 4:5]) * torch.sigmoid(output[..., 5:])
    return boxes.reshape(batch, -1, 4), scores.reshape(batch, boxes[0].numel() // 4, -1)
