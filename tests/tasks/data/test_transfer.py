"""Copies in one piece: every tensor comes back with its type, shape and values."""

from __future__ import annotations

import torch

from tasks.data.transfer import constant, moved_together

CPU = torch.device("cpu")


def test_tensors_that_move_together_keep_type_shape_and_values() -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = [
        torch.rand(3, 4, generator=generator),
        torch.tensor([True, False, True]),
        torch.arange(5),
        torch.zeros(0, 4),
        torch.zeros(0, dtype=torch.int64),
        torch.rand(2, 6, generator=generator)[:, ::2],  # not contiguous
        torch.tensor(7.5),
        torch.tensor([[1, 2]], dtype=torch.uint8),
    ]
    found = moved_together(tensors, CPU)
    for tensor, copy in zip(tensors, found, strict=True):
        assert copy.dtype == tensor.dtype
        assert torch.equal(copy, tensor)
    found[0].zero_()
    assert tensors[0].any()
    assert moved_together([], CPU) == []


def test_a_constant_is_float32() -> None:
    assert torch.equal(constant([[1, 2.5]], CPU), torch.tensor([[1.0, 2.5]]))
