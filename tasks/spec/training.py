"""How a client trains in its turn, and how the global model is evaluated."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.spec.base import CHOSEN, MOST, AddedLater, Frozen

Beta = Annotated[float, Field(ge=0, lt=1)]
# The images that a model is scored on: a client's test set, or its training images that data.holdout keeps out.
ScoredOn = Literal["test", "holdout"]
PART_NAMES: dict[ScoredOn, str] = {"test": "test", "holdout": "held-out"}
# Images of a forward pass of an evaluation on a GPU, at least.
GPU_EVALUATION_BATCH = 64
_BETAS = "Decay of the running means of the gradient and of its square."


class Sgd(Frozen, title="SGD"):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = Field("sgd", description=CHOSEN)
    lr: float = Field(1e-3, gt=0, le=10, description="Learning rate before the schedule.")
    momentum: float = Field(
        0.9, ge=0, lt=1, description="Fraction of the last step that is added to the next; 0: none."
    )
    nesterov: bool = Field(False, description="Use Nesterov's momentum, which takes the gradient one step ahead.")
    weight_decay: float = Field(5e-4, ge=0, le=1, description="Weight of the L2 term.")

    @model_validator(mode="after")
    def _check(self) -> Sgd:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: expected false without momentum, found true")
        return self


class Adam(Frozen, title="Adam"):
    """Adam (arXiv 1412.6980), with weight decay as an L2 term."""

    kind: Literal["adam"] = Field("adam", description=CHOSEN)
    lr: float = Field(1e-3, gt=0, le=10, description="Learning rate before the schedule.")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description=_BETAS)
    weight_decay: float = Field(0.0, ge=0, le=1, description="Weight of the L2 term.")


class AdamW(Frozen, title="AdamW"):
    """Adam with decoupled weight decay (arXiv 1711.05101), which leaves out norms and biases."""

    kind: Literal["adamw"] = Field("adamw", description=CHOSEN)
    lr: float = Field(1e-3, gt=0, le=10, description="Learning rate before the schedule.")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description=_BETAS)
    weight_decay: float = Field(
        0.02, ge=0, le=1, description="Fraction of a weight, times the learning rate, that each step takes off."
    )


# The default comes first (see tasks.spec.form).
OptimizerSpec = AdamW | Adam | Sgd


class Schedule(Frozen, title="Schedule"):
    """Learning rate as a function of the round: constant for ``hold`` rounds, then a cosine down to ``floor``.

    It is computed at the round's start: round ``hold`` + 1 still has the full rate, and round ``hold`` + ``decay`` + 1
    has the floor. It does not depend on ``max_rounds``, so a run that is extended is the same as one that was longer
    from the start.
    """

    hold: int = Field(1_000_000, ge=0, le=MOST, description="Rounds at the full learning rate.")
    decay: int = Field(0, ge=0, le=MOST, description="Rounds in which the learning rate falls to the floor.")
    floor: float = Field(0.05, ge=0, le=1, description="Last learning rate, as a fraction of the full one.")
    warmup_steps: int = Field(
        10, ge=0, le=MOST, description="Steps of linear warm-up in round 1; later rounds have none."
    )


class Augmentation(Frozen, title="Augmentation"):
    """Random changes to a training image. Each is drawn from the sample's own seed."""

    flip: float = Field(0.5, ge=0, le=1, description="Probability of a horizontal flip.")
    scale: float = Field(0.25, ge=0, lt=1, description="Zoom in or out by up to this fraction.")
    translate: float = Field(0.1, ge=0, le=0.5, description="Shift by up to this fraction of the image.")
    color: float = Field(0.3, ge=0, le=1, description="Strength of brightness, contrast and saturation jitter.")


class TrainingSpec(Frozen, title="Training"):
    """A client's turn: epochs over its own images, from the global weights, with a fresh optimiser."""

    local_epochs: int = Field(
        1, ge=1, le=1000, description="Passes over the client's images in one round (E in the paper)."
    )
    batch_size: int = Field(8, ge=1, le=1024, description="Images per forward pass.")
    accumulate: int = Field(1, ge=1, le=1024, description="Forward passes per optimiser step.")
    optimizer: OptimizerSpec = Field(AdamW(), discriminator="kind", description="How a step changes the weights.")
    schedule: Schedule = Field(
        Schedule(), title="Schedule of the learning rate", description="How the learning rate falls over the rounds."
    )
    clip_norm: float | None = Field(10.0, gt=0, le=MOST, description="Largest norm of the gradient; None: not clipped.")
    augmentation: Augmentation = Field(Augmentation(), description="Random changes to the training images.")
    multi_scale: tuple[int, int] | None = Field(
        None,
        description="Smallest and largest width of the input, multiples of 32; every ten steps a width between them is "
        "drawn. Left out: the detector's width. The aspect ratio stays, and evaluation uses the detector's size.",
    )
    threads: int = Field(
        1, ge=1, le=64, description="CPU threads of a turn. Another number gives a result with other bits."
    )
    loader_workers: int = Field(
        0, ge=0, le=64, description="Processes that prepare images. They do not change the result."
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="Where turns compute.")
    amp: bool = Field(
        False,
        title="Mixed precision (amp)",
        description="Forward passes of turns compute in bfloat16 where that is safe (torch's autocast); needs "
        "device: cuda.",
    )

    @model_validator(mode="after")
    def _check(self) -> TrainingSpec:
        if self.amp and self.device != "cuda":
            raise ValueError(f"amp: expected false unless device is cuda, found true with device {self.device}")
        if self.multi_scale is not None:
            smallest, largest = self.multi_scale
            if smallest % 32 or largest % 32 or not 64 <= smallest <= largest <= 2048:
                raise ValueError(
                    "multi_scale: expected two multiples of 32 from 64 to 2048, the smaller one first, "
                    f"found {smallest}, {largest}"
                )
        return self


class FineTuning(Frozen, title="Fine-tuning"):
    """After the last round each client trains the global model on its own images, and its result is scored there."""

    epochs: int = Field(1, ge=1, le=1000, description="Passes over the client's images.")
    lr: float | None = Field(
        None, gt=0, le=10, description="Learning rate; left out: that of the schedule in the round that would be next."
    )


class EvaluationSpec(Frozen, title="Evaluation"):
    """How the global model is scored. It is always scored by PASCAL VOC 2010, PASCAL VOC 2007 and COCO."""

    score_threshold: float = Field(0.001, ge=0, lt=1, description="Detections with a lower score do not count.")
    nms_iou: float = Field(
        0.5, gt=0, le=1, description="Non-maximum suppression drops a box that overlaps a better one by more."
    )
    max_detections: int = Field(100, ge=1, le=10_000, description="Detections kept per image and class, best first.")
    batch_size: int = Field(8, ge=1, le=1024, description="Images per forward pass; on a GPU at least 64.")
    on: Annotated[Literal["test", "holdout", "both"], AddedLater()] = Field(
        "test",
        description="Images that each round scores: the test sets, the images that data.holdout keeps out of training, "
        "or both. With holdout or both, the held-out images decide patience, target_map and the best round.",
    )

    def batch_on(self, device: str) -> int:
        """Return the number of images of a forward pass on ``device``: on a GPU at least 64, which small ones waste."""
        return max(self.batch_size, GPU_EVALUATION_BATCH) if device == "cuda" else self.batch_size

    @property
    def parts(self) -> tuple[ScoredOn, ...]:
        """Return the parts of the data that a round scores."""
        return ("test", "holdout") if self.on == "both" else (self.on,)

    @property
    def decides(self) -> ScoredOn:
        """Return the part of the data whose figures decide patience, the target and the best round."""
        return "test" if self.on == "test" else "holdout"
