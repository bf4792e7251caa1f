"""Build a strategy from its specification. A new kind needs one line here."""

from __future__ import annotations

from tasks.errors import SpecError
from tasks.spec.federation import FedAvgSpec
from tasks.strategies.base import Reference, Strategy
from tasks.strategies.fedavg import FedAvg

_STRATEGIES = {FedAvgSpec: FedAvg}


def build_strategy(strategy: FedAvgSpec, reference: Reference | None = None) -> Strategy:
    """Return a fresh accumulator for one round. ``reference``: name, shape and type of each tensor of an update.

    Raises:
        SpecError: no strategy of this kind is known.
    """
    try:
        return _STRATEGIES[type(strategy)](reference)
    except KeyError:
        known = ", ".join(str(kind.model_fields["kind"].default) for kind in _STRATEGIES)
        found = getattr(strategy, "kind", type(strategy).__name__)
        raise SpecError(f"strategy.kind: expected one of {known}, found {found}") from None
