"""The federated methods: how clients train beside the plain steps, and how their updates become the next model.

Each kind has a class of the same name in ``tasks/strategies``, with the method's formula and its paper.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Protocol

from pydantic import Field

from tasks.spec.base import CHOSEN, MOST, AddedLater, Frozen
from tasks.spec.detector import DetectorSpec
from tasks.spec.faster_rcnn import FasterRcnnPyramidSpec, FasterRcnnVgg16Spec
from tasks.spec.strategy_faults import frozen_norm_faults, plain_sgd_faults
from tasks.spec.training import TrainingSpec

Weighting = Literal["images", "uniform", "objects"]

_WEIGHTS = (
    "What a client's update counts by: its training images, the same for every client, or its training objects (boxes)."
)
_SERVER_LR = "Learning rate of the server's step."
_TAU = "Smallest divisor of the server's step: adds to the root of the second moment, which starts at its square."


class Experiment(Protocol):
    """The parts of a specification that a method may have rules for."""

    @property
    def detector(self) -> DetectorSpec: ...

    @property
    def training(self) -> TrainingSpec: ...


class StrategySpec(Frozen):
    """The fields that all methods have, and what a method allows.

    additive: the server needs weighted sums of the updates only, so that some may be summed beforehand.
    personal: each client keeps a model of its own, or a part of one, and is scored with it.
    shared_model: the global model is complete. Without, only the clients' own models can be used.
    implementation: the class of a method that another package brings (:mod:`tasks.spec.extensions`), as
        ``package.module:Class``; empty for a kind of fedbench, whose class is in ``tasks/strategies``.
    """

    additive: ClassVar[bool] = True
    personal: ClassVar[bool] = False
    shared_model: ClassVar[bool] = True
    implementation: ClassVar[str] = ""

    kind: str = Field(description=CHOSEN)

    @property
    def weighting(self) -> Weighting:
        """What a client's update counts by."""
        return "images"

    @property
    def label(self) -> str:
        """Return the kind, and in brackets the fields that differ from their defaults: ``fedprox (mu 0.1)``."""
        changed = {name: getattr(self, name) for name, field in type(self).model_fields.items() if name != "kind"
                   and getattr(self, name) != field.get_default(call_default_factory=True)}  # fmt: skip
        fields = ", ".join(f"{name} {_value(value)}" for name, value in changed.items())
        return f"{self.kind} ({fields})" if fields else self.kind

    def faults(self, experiment: Experiment) -> Iterator[str]:
        """Yield why ``experiment`` cannot be run with this method.

        Each text names the fields, what was expected and found, and the options with which it runs.
        """
        yield from ()


class WeightedSpec(StrategySpec):
    """A method whose updates may be weighted in three ways."""

    weights: Annotated[Weighting, AddedLater()] = Field("images", description=_WEIGHTS)

    @property
    def weighting(self) -> Weighting:
        return self.weights


class UniformSpec(StrategySpec):
    """A method whose rule counts every client the same."""

    @property
    def weighting(self) -> Weighting:
        return "uniform"


class PersonalSpec(WeightedSpec):
    """A method whose clients keep a model of their own. Their updates are not summed before they reach the server."""

    additive: ClassVar[bool] = False
    personal: ClassVar[bool] = True


class PartlyLocalSpec(PersonalSpec):
    """A method whose clients keep a part of the model, so that there is no complete shared one."""

    shared_model: ClassVar[bool] = False


class FedAvgSpec(WeightedSpec, title="FedAvg"):
    """Federated averaging (arXiv 1602.05629): the weighted mean of the updates."""

    kind: Literal["fedavg"] = Field("fedavg", description=CHOSEN)


class FedProxSpec(WeightedSpec, title="FedProx"):
    """FedProx (arXiv 1812.06127): a proximal term holds each client's weights near the global model."""

    kind: Literal["fedprox"] = Field("fedprox", description=CHOSEN)
    mu: float = Field(0.01, ge=0, le=1e6, description="Weight of the proximal term; 0: FedAvg.")


class FedAvgMSpec(WeightedSpec, title="FedAvgM"):
    """FedAvg with momentum at the server (arXiv 1909.06335)."""

    kind: Literal["fedavgm"] = Field("fedavgm", description=CHOSEN)
    momentum: float = Field(0.9, ge=0, lt=1, description="Fraction of the server's last step that its next one keeps.")
    server_lr: float = Field(1.0, gt=0, le=MOST, description=_SERVER_LR)


class FedAdagradSpec(WeightedSpec, title="FedAdagrad"):
    """Adagrad at the server (arXiv 2003.00295): its step is divided by the root of the sum of all squared changes."""

    kind: Literal["fedadagrad"] = Field("fedadagrad", description=CHOSEN)
    server_lr: float = Field(0.01, gt=0, le=MOST, description=_SERVER_LR)
    beta1: float = Field(0.0, ge=0, lt=1, description="Decay of the first moment.")
    tau: float = Field(1e-3, gt=0, le=MOST, description=_TAU)


class TwoDecaysSpec(WeightedSpec):
    """The fields that FedAdam and FedYogi have in common; they differ in the rule of the second moment."""

    server_lr: float = Field(0.01, gt=0, le=MOST, description=_SERVER_LR)
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(0.99, ge=0, lt=1, description="Decay of the second moment.")
    tau: float = Field(1e-3, gt=0, le=MOST, description=_TAU)


class FedAdamSpec(TwoDecaysSpec, title="FedAdam"):
    """Adam at the server (arXiv 2003.00295), without bias correction."""

    kind: Literal["fedadam"] = Field("fedadam", description=CHOSEN)


class FedYogiSpec(TwoDecaysSpec, title="FedYogi"):
    """Yogi at the server (arXiv 2003.00295): the second moment moves by a bounded part of the squared change."""

    kind: Literal["fedyogi"] = Field("fedyogi", description=CHOSEN)


class ScaffoldSpec(UniformSpec, title="SCAFFOLD"):
    """SCAFFOLD (arXiv 1910.06378): control variates correct each step for the drift between clients.

    Needs plain SGD without momentum and without clipping, because the control variates are computed from the steps.
    """

    kind: Literal["scaffold"] = Field("scaffold", description=CHOSEN)
    server_lr: float = Field(1.0, gt=0, le=MOST, description=_SERVER_LR)

    def faults(self, experiment: Experiment) -> Iterator[str]:
        yield from plain_sgd_faults(self.kind, experiment.training, momentum=False, clipping=False)


class FedNovaSpec(WeightedSpec, title="FedNova"):
    """FedNova (arXiv 2007.07481): updates are divided by the clients' numbers of steps before they are averaged.

    Needs SGD, with or without momentum, because the divisor is computed from its steps.
    """

    kind: Literal["fednova"] = Field("fednova", description=CHOSEN)

    def faults(self, experiment: Experiment) -> Iterator[str]:
        yield from plain_sgd_faults(self.kind, experiment.training, momentum=True, clipping=True)


class FedExPSpec(UniformSpec, title="FedExP"):
    """FedExP (arXiv 2301.09604): the server extrapolates where the clients' changes disagree."""

    kind: Literal["fedexp"] = Field("fedexp", description=CHOSEN)
    epsilon: float = Field(1e-3, ge=0, le=MOST, description="Added to the squared norm of the mean change.")


class FedDynSpec(UniformSpec, title="FedDyn"):
    """FedDyn (arXiv 2111.04263): a dynamic regulariser makes the clients' optima agree with the global one."""

    kind: Literal["feddyn"] = Field("feddyn", description=CHOSEN)
    alpha: float = Field(0.01, gt=0, le=1e6, description="Weight of the regulariser.")


class FedSamSpec(WeightedSpec, title="FedSAM"):
    """FedSAM (arXiv 2206.02618): local steps by sharpness-aware minimisation. A step takes two gradients."""

    kind: Literal["fedsam"] = Field("fedsam", description=CHOSEN)
    rho: float = Field(0.05, ge=0, le=1e6, description="Length of the step to the point of the second gradient.")


class FedBNSpec(PartlyLocalSpec, title="FedBN"):
    """FedBN (arXiv 2102.07623): normalisation layers stay at the client.

    Needs a detector with a normalisation layer that is trained.
    """

    kind: Literal["fedbn"] = Field("fedbn", description=CHOSEN)

    def faults(self, experiment: Experiment) -> Iterator[str]:
        detector = experiment.detector
        if isinstance(detector, FasterRcnnVgg16Spec):
            yield (
                f"strategy.kind {self.kind}: expected a detector with normalisation layers, found detector.kind "
                f"{detector.kind}, which has none; it runs with -s detector.kind=faster-rcnn-resnet50-fpn"
            )
        elif isinstance(detector, FasterRcnnPyramidSpec):
            yield from frozen_norm_faults(self.kind, detector)


class FedPerSpec(PartlyLocalSpec, title="FedPer"):
    """FedPer (arXiv 1912.00818): the head stays at the client."""

    kind: Literal["fedper"] = Field("fedper", description=CHOSEN)


class FedRepSpec(PartlyLocalSpec, title="FedRep"):
    """FedRep (arXiv 2102.07078): the head stays at the client. A turn trains it first, then the body.

    The epochs of both are those of the turn: their sum is training.local_epochs.
    """

    kind: Literal["fedrep"] = Field("fedrep", description=CHOSEN)
    head_epochs: int = Field(
        1, ge=1, le=1000, description="Epochs in which the head alone is trained; they come first."
    )
    body_epochs: int = Field(1, ge=1, le=1000, description="Epochs in which all but the head is trained.")

    def faults(self, experiment: Experiment) -> Iterator[str]:
        found, total = experiment.training.local_epochs, self.head_epochs + self.body_epochs
        if found != total:
            yield (
                f"strategy.head_epochs {self.head_epochs} and strategy.body_epochs {self.body_epochs}: expected a sum "
                f"of training.local_epochs, found {found}; it runs with -s training.local_epochs={total}"
            )


class DittoSpec(PersonalSpec, title="Ditto"):
    """Ditto (arXiv 2012.04221): beside FedAvg, each client trains a model of its own, held near the global one."""

    kind: Literal["ditto"] = Field("ditto", description=CHOSEN)
    proximity: float = Field(
        0.1,
        ge=0,
        le=1e6,
        description="Weight λ of the term that holds a client's own model near the global one; 0: trained alone.",
    )


# The default comes first (see tasks.spec.form).
AnyStrategy = (
    FedAvgSpec
    | FedProxSpec
    | FedAvgMSpec
    | FedAdagradSpec
    | FedAdamSpec
    | FedYogiSpec
    | ScaffoldSpec
    | FedNovaSpec
    | FedExPSpec
    | FedDynSpec
    | FedSamSpec
    | FedBNSpec
    | FedPerSpec
    | FedRepSpec
    | DittoSpec
)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else "null" if value is None else str(value)
