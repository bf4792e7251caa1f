"""EfficientNet-Lite0, a backbone for small machines: EfficientNet (arXiv 1905.11946) without squeeze and excitation.

As in TensorFlow's ``efficientnet/lite``, it has ReLU6, TensorFlow's padding, and inputs (pixel − 127) / 128. BatchNorm
is folded into the convolutions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.detectors.depthwise import depthwise_same, same_padding
from tasks.errors import DataError

EPSILON = 1e-3  # of the pretrained BatchNorm, from TensorFlow


@dataclass(frozen=True)
class Stage:
    """A row of equal blocks, except that the first has the stride and changes the channels."""

    blocks: int
    kernel: int
    stride: int
    expand: int
    channels: int


# arXiv 1905.11946, table 1.
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
STEM_CHANNELS = 32
# The last block at each of the strides 8, 16 and 32, and its output channels.
OUTPUT_BLOCKS = (4, 10, 15)
OUTPUT_CHANNELS = (40, 112, 320)


class SameConv2d(nn.Conv2d):
    """A convolution, dense or depthwise, with TensorFlow's SAME padding."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if self.groups > 1:
            assert self.bias is not None
            return depthwise_same(x, self.weight, self.bias, stride)
        return super().forward(functional.pad(x, same_padding(kernel, stride)))


class InvertedResidual(nn.Module):
    """A block that expands by a 1 x 1 convolution, filters each channel, and projects by a 1 x 1 convolution.

    The input is added to the output if both have the same shape.
    """

    def __init__(self, channels_in: int, channels: int, *, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = channels_in * expand
        self.expand = nn.Conv2d(channels_in, inner, 1) if expand > 1 else None
        self.depthwise = SameConv2d(inner, inner, kernel, stride=stride, groups=inner)
        self.project = nn.Conv2d(inner, channels, 1)
        self.residual = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        inner = x if self.expand is None else functional.relu6(self.expand(x), inplace=True)
        out = self.project(functional.relu6(self.depthwise(inner), inplace=True))
        return x + out if self.residual else out


class EfficientNetLite0(nn.Module):
    """The stem and the 16 blocks, without the layers for classification. 3.4 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv2d(3, STEM_CHANNELS, 3, stride=2)
        self.blocks = nn.ModuleList(_blocks())
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # Outputs get the variance of their inputs, because no layer normalises them.
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return maps at strides 8, 16 and 32 with 40, 112 and 320 channels; images are uint8 [B, 3, H, W]."""
        x = ((images.float() - 127) / 128).contiguous(memory_format=torch.channels_last)
        x = functional.relu6(self.stem(x), inplace=True)
        maps = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in OUTPUT_BLOCKS:
                maps.append(x)
        return maps

    def freeze(self, blocks: int) -> None:
        """Exclude the stem and the first ``blocks`` blocks from training. With 0 blocks, all are trained."""
        if blocks:
            for module in (self.stem, *self.blocks[:blocks]):
                module.requires_grad_(False)


def _blocks() -> Iterator[InvertedResidual]:
    before = STEM_CHANNELS
    for stage in STAGES:
        for number in range(stage.blocks):
            stride = stage.stride if number == 0 else 1
            yield InvertedResidual(before, stage.channels, kernel=stage.kernel, stride=stride, expand=stage.expand)
            before = stage.channels


def load_pretrained(backbone: EfficientNetLite0, path: Path) -> None:
    """Load the package's state dict, and fold each BatchNorm into the convolution before it.

    w' = w · γ / √(σ² + ε), b' = β − μ · γ / √(σ² + ε).

    Raises:
        DataError: the file cannot be read or is not this network's.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch passes on any error of the archive's reader
        raise DataError(f"{path}: expected a state dict: {str(error).splitlines()[0]}") from None
    with torch.no_grad():
        for conv, name, norm in _convolutions(backbone):
            try:
                weight, bias = _folded(state, name, norm)
                conv.weight.copy_(weight)
                conv.bias.copy_(bias)  # type: ignore[union-attr]
            except (KeyError, RuntimeError, TypeError) as error:
                raise DataError(f"{path}: {name}: expected EfficientNet-Lite0's weights: {error}") from None


class _PretrainedConv(NamedTuple):
    """A convolution of the backbone, its name in the package's file, and the name of its BatchNorm there."""

    conv: nn.Conv2d
    name: str
    norm: str


def _convolutions(backbone: EfficientNetLite0) -> Iterator[_PretrainedConv]:
    yield _PretrainedConv(backbone.stem, "_conv_stem", "_bn0")
    for number, block in enumerate(backbone.blocks):
        assert isinstance(block, InvertedResidual)
        prefix = f"_blocks.{number}."
        if block.expand is not None:
            yield _PretrainedConv(block.expand, f"{prefix}_expand_conv", f"{prefix}_bn0")
        yield _PretrainedConv(block.depthwise, f"{prefix}_depthwise_conv", f"{prefix}_bn1")
        yield _PretrainedConv(block.project, f"{prefix}_project_conv", f"{prefix}_bn2")


def _folded(state: Mapping[str, Tensor], name: str, norm: str) -> tuple[Tensor, Tensor]:
    scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + EPSILON)
    weight = state[f"{name}.weight"] * scale.view(-1, 1, 1, 1)
    return weight, state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
