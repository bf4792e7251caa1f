"""Presets: functions that return a specification. ``fedbench run NAME`` starts from one; ``--set`` changes fields."""

from __future__ import annotations

from collections.abc import Callable

from tasks.errors import SpecError
from tasks.spec.data import DataSpec, FederatedStreet, SyntheticStreet
from tasks.spec.detector import FcosLite0Spec, YoloV3TinySpec
from tasks.spec.detector_parts import TorchvisionWeights
from tasks.spec.faster_rcnn import FasterRcnnMobileNetV3Spec, FasterRcnnVgg16Spec
from tasks.spec.federation import FederationSpec
from tasks.spec.nearest import did_you_mean
from tasks.spec.training import AdamW, Augmentation, EvaluationSpec, Schedule, Sgd, TrainingSpec

# Content digest of Federated Street as published: all 956 images and both label files.
STREET_DIGEST = "d7f19422545e1c93bd0c8cd6270fdb93acdbf2d50e990b7bbe1e4bea02cd8374"
# The same content in the clean division (data.division).
STREET_CLEAN_DIGEST = "85c064002c3a6e041cc819ab2ca13efd850ce451abb570264ff9185f796911b5"


def synthetic5() -> FederationSpec:
    """The main job: five synthetic street cameras, YOLOv3-tiny at 256 x 192; minutes on two cores."""
    return FederationSpec(
        max_rounds=5,
        data=SyntheticStreet(train_images=500, test_images=100),
        detector=YoloV3TinySpec(width=256, height=192, assignment="side-ratio", box_loss="ciou"),
        training=TrainingSpec(batch_size=4, optimizer=AdamW(lr=1e-3), schedule=Schedule(hold=2, decay=3, floor=0.1)),
    )


def street5() -> FederationSpec:
    """Real Federated Street, 5 devices, YOLOv3-tiny from scratch at 320 px, one local epoch in each round."""
    return FederationSpec(
        max_rounds=24,
        data=FederatedStreet(split=5, digest=STREET_DIGEST),
        detector=YoloV3TinySpec(
            width=320, height=320, assignment="side-ratio", box_loss="ciou", batch_norm_momentum=0.3
        ),
        training=TrainingSpec(
            batch_size=4,
            optimizer=AdamW(lr=1e-3),
            schedule=Schedule(hold=14, decay=10, floor=0.05),
            augmentation=Augmentation(scale=0.1, translate=0.05, color=0.1),
        ),
    )


def street20() -> FederationSpec:
    """Real Federated Street, 20 devices; otherwise as street5."""
    spec = street5()
    return spec.model_copy(update={"data": FederatedStreet(split=20, digest=STREET_DIGEST)})


def street5_laptop() -> FederationSpec:
    """Real Federated Street, 5 devices, the detector for laptops from an ImageNet backbone; no GPU needed."""
    return FederationSpec(
        max_rounds=28,
        data=FederatedStreet(split=5, digest=STREET_DIGEST),
        detector=FcosLite0Spec(),
        training=TrainingSpec(batch_size=4, optimizer=AdamW(lr=1e-3), schedule=Schedule(hold=14, decay=14, floor=0.05)),
    )


def street5_faster_rcnn() -> FederationSpec:
    """Real Federated Street, 5 devices, the paper's Faster R-CNN over ImageNet's VGG16; wants a GPU.

    Weights: torchvision's vgg16-397923af.pth in the folder of weight files.
    """
    return FederationSpec(
        max_rounds=50,
        data=FederatedStreet(split=5, digest=STREET_DIGEST),
        detector=FasterRcnnVgg16Spec(weights=TorchvisionWeights(name="vgg16-397923af.pth")),
        training=TrainingSpec(
            local_epochs=5,
            batch_size=1,
            optimizer=Sgd(lr=1e-4, momentum=0.9, weight_decay=5e-4),
            augmentation=Augmentation(flip=0.5, scale=0, translate=0, color=0),
            device="cuda",
        ),
    )


def street5_faster_rcnn_laptop() -> FederationSpec:
    """Real Federated Street, 5 devices, Faster R-CNN over MobileNetV3 at 320 px; no GPU and no weight file needed.

    From scratch, so with GroupNorm: more a trial of the detector than a good start.
    """
    return FederationSpec(
        max_rounds=28,
        data=FederatedStreet(split=5, digest=STREET_DIGEST),
        detector=FasterRcnnMobileNetV3Spec(train_proposals=500, sampled_proposals=64),
        training=TrainingSpec(batch_size=4, optimizer=AdamW(lr=5e-4), schedule=Schedule(hold=14, decay=14, floor=0.05)),
    )


def smoke() -> FederationSpec:
    """Seconds, not minutes: shows that everything runs, not that it learns."""
    return FederationSpec(
        max_rounds=2,
        data=SyntheticStreet(train_images=60, test_images=16, width=176, height=144),
        detector=YoloV3TinySpec(width=96, height=96, assignment="side-ratio", box_loss="ciou"),
        training=TrainingSpec(batch_size=4),
        evaluation=EvaluationSpec(batch_size=4),
    )


def with_passes(spec: FederationSpec, passes: int, *, local_epochs: int = 1) -> FederationSpec:
    """Return ``spec`` with ``passes`` over the images: the learning rate is full for half of the rounds, then falls."""
    rounds = passes // local_epochs
    schedule = spec.training.schedule.model_copy(update={"hold": rounds - rounds // 2, "decay": rounds // 2})
    training = spec.training.model_copy(update={"local_epochs": local_epochs, "schedule": schedule})
    return spec.model_copy(update={"max_rounds": rounds, "training": training})


def own_data(data: DataSpec) -> FederationSpec:
    """Other data with the detector, training and rounds of street5_laptop. It is no preset: it needs the data."""
    return street5_laptop().model_copy(update={"data": data})


PRESETS: dict[str, Callable[[], FederationSpec]] = {
    preset.__name__: preset
    for preset in (
        synthetic5,
        street5,
        street20,
        street5_laptop,
        street5_faster_rcnn,
        street5_faster_rcnn_laptop,
        smoke,
    )
}


def preset(name: str) -> FederationSpec:
    """Return the preset ``name``.

    Raises:
        SpecError: there is no such preset; the message lists all presets.
    """
    if name not in PRESETS:
        raise SpecError(
            f"{name}: no such preset or file; expected a YAML file or one of: {', '.join(PRESETS)}"
            f"{did_you_mean(name, PRESETS)}"
        )
    return PRESETS[name]()
