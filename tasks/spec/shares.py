"""How much each client counts for: the weights of a round's plan, and the largest share that one client may hold.

A client's weight is its number of training images, as ``wake_up`` counted them. That figure is the client's own word,
so ``participation.max_weight_share`` can limit what it buys: with a limit ``s``, no client holds more than ``s`` of the
whole weight, and the others share the rest in proportion to their images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Annotated

from pydantic import Field

from tasks.spec.base import MOST

# From images that were counted, or a part of that.
Weight = Annotated[int, Field(ge=0, le=MOST)] | Annotated[float, Field(ge=0, le=MOST)]

# Shares are compared up to this relative difference: 0.2 and 5 clients fit, although 0.2 has no exact float.
_TOLERANCE = Fraction(1, 10**9)


def least_clients(share: float) -> int:
    """Clients without which one of them must hold more than ``share``: the least ``n`` with ``share * n >= 1``."""
    return math.ceil((1 - _TOLERANCE) / _exact(share))


def limited(weights: Mapping[str, int], share: float | None) -> dict[str, Weight]:
    """``weights`` by client, the largest of them lowered until no client holds more than ``share`` of their sum.

    A weight that is not lowered is the same integer as before, so where no limit applies no bit changes.

    Raises:
        ValueError: too few clients have a weight.
    """
    if share is None:
        return dict(weights)
    factors = limiting_factors([(weight, weight) for weight in weights.values()], share)
    if factors is None:
        raise ValueError(f"expected at least {least_clients(share)} clients with a weight, found {_counted(weights)}")
    return {client: lowered(weight, factor) for (client, weight), factor in zip(weights.items(), factors, strict=True)}


def limiting_factors(parts: Sequence[tuple[Weight, Weight]], share: float) -> list[Fraction] | None:
    """What each part's weight is multiplied with (at most 1) so that no client holds more than ``share`` of the sum.

    parts: the weight of each, and that of its greatest client. A client's own update is a part of one client; clients
        of a partial sum, or with one test set, are a part of several, whose proportions cannot be changed any more.

    Returns None when no factors do, because there are too few clients.
    """
    exact = [(Fraction(weight), Fraction(greatest)) for weight, greatest in parts]
    part = _exact(share)
    # A lowered part's greatest client holds the limit L exactly, so the part weighs L * weight / greatest. With R the
    # weight of all other parts, L = share * (R + L * sum of weight / greatest over the lowered ones).
    rest, ratios = sum((weight for weight, _ in exact), Fraction()), Fraction()
    present = sorted((item for item in exact if item[1]), key=lambda item: -item[1])
    limit = Fraction()
    for weight, greatest in present:
        limit = part * rest / (1 - part * ratios)
        if greatest <= limit * (1 + _TOLERANCE):
            break
        rest, ratios = rest - weight, ratios + weight / greatest
    else:
        # All parts were lowered: they fit only if all their greatest clients may weigh the same.
        if part * ratios < 1 - _TOLERANCE:
            return None
        limit = min(greatest for _, greatest in present)
    return [limit / greatest if greatest > limit * (1 + _TOLERANCE) else Fraction(1) for _, greatest in exact]


def lowered(weight: Weight, factor: Fraction) -> Weight:
    """``weight`` times ``factor``; the very ``weight`` when the factor is 1."""
    return weight if factor == 1 else float(weight * factor if isinstance(weight, int) else Fraction(weight) * factor)


def majority(weights: Mapping[str, Weight]) -> tuple[str, float] | None:
    """The client that holds more than half of the whole weight, and its share; None when nobody does, or all alone."""
    total = sum(Fraction(weight) for weight in weights.values())
    for client, weight in weights.items():
        if len(weights) > 1 and 2 * Fraction(weight) > total:
            return client, float(weight / total)
    return None


def _exact(share: float) -> Fraction:
    """The decimal number that was written: 0.2 is a fifth."""
    return Fraction(repr(float(share)))


def _counted(weights: Mapping[str, Weight]) -> int:
    return sum(1 for weight in weights.values() if weight)
