"""Estimate BatchNorm's running statistics for weights that came without statistics or with those of other weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tasks.data.samples import ImageSample
from tasks.errors import DataError
from tasks.training.seeds import derive_seed


@torch.no_grad()
def estimate_statistics(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace the running statistics of every BatchNorm layer by those of ``batches``. Return the number of images.

    A layer's statistics become the plain means of the batches' means and unbiased variances (momentum None), so
    batches should be equally large. Each batch takes one forward pass. Only BatchNorm layers are in training mode
    meanwhile. No weight changes, and the model's mode is restored.

    Raises:
        DataError: there are no batches, or a statistic is NaN or infinite. The message names the layer.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}
    modes = {module: module.training for module in model.modules()}
    momenta = {name: layer.momentum for name, layer in layers.items()}
    images = 0
    try:
        model.eval()
        for layer in layers.values():
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
        for batch in batches:
            model(batch)
            images += batch.shape[0]
    finally:
        for name, layer in layers.items():
            layer.momentum = momenta[name]
        for module, training in modes.items():
            module.training = training
    if not images:
        raise DataError("BatchNorm's statistics: no images to estimate them from")
    _check(layers)
    return images


def _check(layers: Mapping[str, nn.Module]) -> None:
    for name, layer in layers.items():
        for statistic in ("running_mean", "running_var"):
            if not bool(torch.isfinite(getattr(layer, statistic)).all()):
                raise DataError(f"BatchNorm's statistics: {name}.{statistic} is NaN or infinite with these weights")


def sample_images(samples: Sequence[ImageSample], most: int, *, seed: int, batch_size: int) -> list[ImageSample]:
    """Draw at most ``most`` different samples from ``seed``, in whole batches if there are enough."""
    order = np.random.default_rng(derive_seed(seed, "batch-norm")).permutation(len(samples))
    count = min(most, len(samples))
    if count > batch_size:
        count -= count % batch_size
    return [samples[index] for index in order[:count]]
