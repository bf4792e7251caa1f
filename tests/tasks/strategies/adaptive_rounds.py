"""Rounds of one client with given changes, for the tests of FedAdagrad, FedAdam and FedYogi."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tasks.spec.strategies import FedAdagradSpec, FedAdamSpec, FedYogiSpec
from tests.tasks.strategies.small_federation import serve


def server_rounds(
    spec: FedAdagradSpec | FedAdamSpec | FedYogiSpec, changes: Sequence[float]
) -> list[tuple[float, float, float]]:
    """Return the model, from 0, and both moments after each of the ``changes``."""
    model, result, found = {"w": torch.zeros(1)}, None, []
    for change in changes:
        result = serve(spec, model, [{"w": model["w"] + change}], last=result)
        model = result.model
        assert result.server is not None
        found.append((float(model["w"]), float(result.server["m/w"]), float(result.server["v/w"])))
    return found
