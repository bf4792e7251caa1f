"""Build a method from its specification: the class of the kind ``fedadam`` is ``tasks.strategies.fedadam.METHOD``.

The class of a kind of another package is the one that its specification's ``implementation`` names.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, get_args

from tasks.errors import SpecError
from tasks.spec import extensions
from tasks.spec.federation import FederationSpec
from tasks.spec.strategies import AnyStrategy
from tasks.strategies.base import Strategy


def strategy_class(spec: FederationSpec) -> type[Strategy[Any]]:
    """Return the class of the method that ``spec.strategy`` describes.

    Raises:
        SpecError: no method is of this kind; or another package's class cannot be imported, or is no method.
    """
    kind, own = spec.strategy.kind, spec.strategy.implementation
    if own:
        return extensions.implementation(own, Strategy, field=f"strategy.kind {kind}")
    known = [str(method.model_fields["kind"].default) for method in get_args(AnyStrategy)]
    if kind not in known:
        raise SpecError(f"strategy.kind: expected one of {', '.join(known)}, found {kind}")
    module = import_module(f"tasks.strategies.{kind.replace('-', '_')}")
    method: type[Strategy[Any]] = module.METHOD
    return method


def build_strategy(spec: FederationSpec) -> Strategy[Any]:
    """Return the method that ``spec.strategy`` describes."""
    return strategy_class(spec)(spec.strategy, spec.training)
