"""The weights of a round's clients, and the largest share of them that one client may hold.

A client's weight is its number of training images, as ``wake_up`` counted them. The client reports this number itself,
so ``participation.max_weight_share`` can limit its effect: with a limit ``s``, no client holds more than ``s`` of the
whole weight, and the others share the rest in proportion to their images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Annotated

from pydantic import Field

from tasks.spec.base import MOST

# A number of images, or a fraction of it where a limit has lowered the weight.
Weight = Annotated[int, Field(ge=0, le=MOST)] | Annotated[float, Field(ge=0, le=MOST)]

# Shares are compared up to this relative difference.
_TOLERANCE = Fraction(1, 10**9)


def least_clients(share: float) -> int:
    """Return the least number of clients that can all keep to ``share``: the least ``n`` with ``share * n >= 1``."""
    return math.ceil((1 - _TOLERANCE) / _exact(share))


def limited(weights: Mapping[str, int], share: float | None) -> dict[str, Weight]:
    """Return ``weights`` with the largest lowered until no client holds more than ``share`` of their sum.

    A weight that is not lowered stays the same integer, so results do not change by a bit if no limit applies.

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
    """Return a factor (at most 1) for each part's weight so that no client holds more than ``share`` of the sum.

    parts: the weight of each part, and that of its greatest client. A client's own update is a part of one client. The
        clients of a partial sum, or with a common test set, are one part; their proportions cannot change any more.

    Returns None if there are too few clients for any factors.
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
    """Return ``weight`` times ``factor``; ``weight`` itself if the factor is 1."""
    return weight if factor == 1 else float(weight * factor if isinstance(weight, int) else Fraction(weight) * factor)


def majority(weights: Mapping[str, Weight]) -> tuple[str, float] | None:
    """Return the client that holds more than half of the whole weight, and its share.

    Return None if no client does, or if there is only one client.
    """
    total = sum(Fraction(weight) for weight in weights.values())
    for client, weight in weights.items():
        if len(weights) > 1 and 2 * Fraction(weight) > total:
            return client, float(weight / total)
    return None


def _exact(share: float) -> Fraction:
    """Return ``share`` as the decimal number that was written: a fifth for 0.2."""
    return Fraction(repr(float(share)))


def _counted(weights: Mapping[str, Weight]) -> int:
    return sum(1 for weight in weights.values() if weight)
