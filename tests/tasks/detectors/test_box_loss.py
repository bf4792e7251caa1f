"""The losses on pairs of boxes that a GPU computes equal torchvision's, in values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import complete_box_iou_loss, generalized_box_iou_loss

from tasks.detectors.box_loss import (
    complete_iou_loss,
    complete_iou_losses,
    generalized_iou_loss,
    generalized_iou_losses,
)

Loss = Callable[[Tensor, Tensor], Tensor]


def boxes(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner, sides = torch.rand(2, count, 2, generator=generator) * torch.tensor([[[50.0]], [[30.0]]])
    return torch.cat([corner, corner + sides + 1], dim=1)


@pytest.mark.parametrize(
    ("ours", "summed", "theirs"),
    [
        (generalized_iou_losses, generalized_iou_loss, generalized_box_iou_loss),
        (complete_iou_losses, complete_iou_loss, complete_box_iou_loss),
    ],
)
def test_values_and_gradients_equal_torchvisions(ours: Loss, summed: Loss, theirs: Any) -> None:
    first, second = boxes(200, 1), boxes(200, 2)
    second[:5] = first[:5]
    second[5, :2], second[5, 2:] = first[5, 2:], first[5, 2:] + 3  # they touch in a corner
    one, other = first.clone().requires_grad_(), first.clone().requires_grad_()
    found, expected = ours(one, second), theirs(other, second)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    found.sum().backward()
    expected.sum().backward()
    # Where boxes only touch or are equal, the derivative has two values.
    assert one.grad is not None
    assert other.grad is not None
    torch.testing.assert_close(one.grad[6:], other.grad[6:], atol=1e-5, rtol=1e-4)
    assert torch.isfinite(one.grad).all()
    assert torch.equal(summed(first, second), theirs(first, second, reduction="sum"))


@pytest.mark.parametrize("ours", [generalized_iou_losses, complete_iou_losses])
def test_no_pairs_have_a_loss_of_zero_and_a_gradient(ours: Loss) -> None:
    none = torch.zeros(0, 4, requires_grad=True)
    ours(none, torch.zeros(0, 4)).sum().backward()
    assert none.grad is not None


def test_an_empty_second_box_gives_a_finite_gradient() -> None:
    """Points without an object are compared with one of zeros; their loss is left out, but not its derivative."""
    first = boxes(3, 4).requires_grad_()
    generalized_iou_losses(first, torch.zeros(3, 4)).masked_fill(torch.ones(3, dtype=torch.bool), 0).sum().backward()
    assert first.grad is not None
    assert first.grad.abs().max() == 0
