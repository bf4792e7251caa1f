"""Depthwise convolutions with SAME padding: their values and gradients are those of a padded torch convolution."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tasks.detectors.depthwise import depthwise_same, same_padding

CHANNELS = 16
KINDS = list(itertools.product((3, 5), (1, 2)))


def padded(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    x = functional.pad(x, same_padding(weight.shape[-1], stride))
    return functional.conv2d(x, weight, bias, stride, groups=weight.shape[0])


def tensors(kernel: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(kernel)
    x = torch.randn(3, CHANNELS, height, width, generator=generator).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(CHANNELS, 1, kernel, kernel, generator=generator)
    return x.requires_grad_(), weight.requires_grad_(), torch.randn(CHANNELS, generator=generator).requires_grad_()


@pytest.mark.parametrize(("kernel", "stride"), KINDS)
@pytest.mark.parametrize(("height", "width"), [(12, 16), (9, 11), (2, 3)])
def test_values_and_gradients_are_those_of_a_padded_convolution(
    kernel: int, stride: int, height: int, width: int
) -> None:
    inputs = tensors(kernel, height, width)
    expected = padded(*inputs, stride=stride)
    found = depthwise_same(*inputs, stride=stride)
    assert found.shape == (3, CHANNELS, height // stride, width // stride)
    torch.testing.assert_close(found, expected)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    for mine, theirs in zip(
        torch.autograd.grad(found, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kernel", "stride"), KINDS)
def test_gradients_are_the_slopes_of_the_values(kernel: int, stride: int) -> None:
    x, weight, bias = (tensor.detach().double() for tensor in tensors(kernel, 6, 4))
    inputs = [tensor.clone().requires_grad_() for tensor in (x[:, :2], weight[:2], bias[:2])]
    assert torch.autograd.gradcheck(lambda x, weight, bias: depthwise_same(x, weight, bias, stride), inputs)


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_the_wanted_gradients_are_given(wanted: tuple[bool, bool, bool]) -> None:
    inputs, expected = tensors(5, 8, 8), tensors(5, 8, 8)
    for tensor, wants in zip(inputs, wanted, strict=True):
        tensor.requires_grad_(wants)
    depthwise_same(*inputs, stride=2).square().sum().backward()
    padded(*expected, stride=2).square().sum().backward()
    for tensor, same, wants in zip(inputs, expected, wanted, strict=True):
        assert (tensor.grad is not None) == wants
        if wants:
            torch.testing.assert_close(tensor.grad, same.grad, rtol=1e-4, atol=1e-4)


def test_with_autocast_it_computes_in_bfloat16_and_has_gradients() -> None:
    inputs = tensors(5, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = depthwise_same(*inputs, stride=1)
    assert found.dtype == torch.bfloat16
    found.float().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in inputs)
