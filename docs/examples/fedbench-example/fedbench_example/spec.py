"""The specifications of the package's kinds. They are imported with every specification, so this file is small."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tasks.spec.base import CHOSEN
from tasks.spec.detector_parts import OwnDetectorSpec
from tasks.spec.strategies import WeightedSpec


class ClippedFedAvgSpec(WeightedSpec, title="FedAvg, clipped at the server"):
    """FedAvg whose step is shortened to a longest length, so that one round cannot move the model far."""

    implementation: ClassVar[str] = "fedbench_example.method:ClippedFedAvg"

    kind: Literal["fedavg-clipped"] = Field("fedavg-clipped", description=CHOSEN)
    max_norm: float = Field(1.0, gt=0, le=1e9, description="Longest step of the model in a round, as its L2 norm.")


class TinyGridSpec(OwnDetectorSpec, title="Tiny grid"):
    """Five convolutions and a grid of cells of 32 pixels: it trains in seconds and detects little."""

    implementation: ClassVar[str] = "fedbench_example.detector:TinyGrid"

    kind: Literal["tiny-grid"] = Field("tiny-grid", description=CHOSEN)
    channels: int = Field(8, ge=4, le=512, description="Channels of the first convolution; later ones have more.")
