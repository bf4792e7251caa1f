"""All methods and detectors that a specification can choose: fedbench's, and those of other installed packages.

For a type checker the unions are fedbench's own; kinds of other packages are known only when the program runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Union, get_args

from pydantic import Field

from tasks.spec import detector, extensions, strategies
from tasks.spec.detector_parts import OwnDetectorSpec

if TYPE_CHECKING:
    from tasks.spec.detector import DetectorSpec as AnyDetector
    from tasks.spec.strategies import AnyStrategy as AnyStrategy
else:
    # The default comes first (see tasks.spec.form).
    _METHODS = get_args(strategies.AnyStrategy)
    _NETWORKS = get_args(get_args(detector.DetectorSpec)[0])
    AnyStrategy = Union[(*_METHODS, *extensions.load(extensions.STRATEGIES, strategies.StrategySpec, _METHODS).specs)]
    AnyDetector = Annotated[
        Union[(*_NETWORKS, *extensions.load(extensions.DETECTORS, OwnDetectorSpec, _NETWORKS).specs)],
        Field(discriminator="kind"),
    ]
