"""A depthwise convolution with TensorFlow's SAME padding whose gradient is quick on a CPU.

Where a kernel is 5 wide, torch's own gradient takes about ten times as long as the convolution: oneDNN computes the
gradient of a depthwise kernel quickly if it is at most 3 wide and padded by at most 1 column, and slowly otherwise.
Here the gradient of a 5 x 5 kernel is put together from those of two 5 x 3 kernels: its columns 0 to 2 and 2 to 4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_COLUMNS = 3  # of a kernel whose gradient oneDNN computes quickly


def same_padding(kernel: int, stride: int) -> tuple[int, int, int, int]:
    """Return TensorFlow's SAME padding as ``functional.pad`` takes it. At stride 2, even sizes get more at the end."""
    before = (kernel - stride) // 2
    after = kernel - stride - before
    return before, after, before, after


def depthwise_same(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """Filter each channel of ``x`` with SAME padding.

    x: [B, C, H, W]. weight: [C, 1, K, K] with K 3 or 5. bias: [C]. stride: 1 or 2.

    Returns [B, C, H // stride, W // stride].
    """
    wants_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, weight, bias))
    slow = weight.shape[-1] != _COLUMNS or stride != 1
    if wants_gradient and slow and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
        return _Depthwise.apply(x, weight, bias, stride)
    return torchs_own(x, weight, bias, stride)  # exporters of networks cannot translate a Function of ours


def torchs_own(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """Return what :func:`depthwise_same` returns, with torch's own gradient."""
    kernel, groups = weight.shape[-1], weight.shape[0]
    if stride == 1:
        return functional.conv2d(x, weight, bias, 1, kernel // 2, groups=groups)
    return functional.conv2d(functional.pad(x, same_padding(kernel, stride)), weight, bias, stride, groups=groups)


class _Depthwise(torch.autograd.Function):
    """The convolution of :func:`depthwise_same` on a CPU, and its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        symmetric = _symmetric(weight, stride)
        return torch.conv2d(x, symmetric, bias, stride, weight.shape[-1] // 2, groups=weight.shape[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        stride, half = ctx.stride, weight.shape[-1] // 2
        return (
            _gradient(grad, x, _symmetric(weight, stride), stride, (half, half), of=0) if of_x else None,
            _weight_gradient(grad, x, weight, stride) if of_weight else None,
            grad.sum((0, 2, 3)) if of_bias else None,
            None,
        )


def _symmetric(weight: Tensor, stride: int) -> Tensor:
    """Return a kernel that does with symmetric padding of K // 2 what ``weight`` does with SAME padding.

    At stride 2 it has a first row and column of zeros. So the input, which is larger, need not be copied to be padded.
    """
    return weight if stride == 1 else functional.pad(weight, (1, 0, 1, 0))


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    kernel = weight.shape[-1]
    before, after, above, below = same_padding(kernel, stride)
    # oneDNN may pad the rows by itself if it pads as many on both sides.
    padding = (above, 0) if above == below else (0, 0)
    x = functional.pad(x, (before, after) if above == below else (before, after, above, below))
    if kernel == _COLUMNS:
        return _gradient(grad, x, weight, stride, padding, of=1)
    # A narrower kernel fits at more places. The gradient is zero at those where the wider one did not fit.
    more = (kernel - _COLUMNS) // stride
    first, last = (
        _gradient(functional.pad(grad, sides), x, part, stride, padding, of=1)
        for sides, part in (((0, more), weight[..., :_COLUMNS]), ((more, 0), weight[..., -_COLUMNS:]))
    )
    return torch.cat([first, last[..., 2 * _COLUMNS - kernel :]], dim=-1)


def _gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int], *, of: int) -> Tensor:
    """Return the gradient of a depthwise convolution for its input (``of`` 0) or its weight (1)."""
    mask = [index == of for index in range(3)]
    found = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [stride] * 2, list(padding), [1, 1], False, [0, 0], weight.shape[0], mask
    )
    return found[of]
