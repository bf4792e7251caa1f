"""Build a method from its specification: the class of the kind ``fedadam`` is ``tasks.strategies.fedadam.METHOD``."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tasks.spec.federation import FederationSpec
from tasks.strategies.base import Strategy


def strategy_class(spec: FederationSpec) -> type[Strategy[Any]]:
    """Return the class of the method that ``spec.strategy`` describes."""
    module = import_module(f"tasks.strategies.{spec.strategy.kind.replace('-', '_')}")
    method: type[Strategy[Any]] = module.METHOD
    return method


def build_strategy(spec: FederationSpec) -> Strategy[Any]:
    """Return the method that ``spec.strategy`` describes."""
    return strategy_class(spec)(spec.strategy, spec.training)
