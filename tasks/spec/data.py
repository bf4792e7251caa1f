"""Which data a federation learns from. Data are named, never located: each machine maps a name to its folder."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.spec.base import Frozen, Sha256


class SyntheticStreet(Frozen):
    """Street cameras drawn by the computer: fixed backgrounds, seven classes, non-IID devices, nested splits."""

    kind: Literal["synthetic-street"] = "synthetic-street"
    split: Literal[5, 20] = Field(5, description="Number of devices; the 20 nest in the 5, as in Federated Street.")
    train_images: int = Field(765, ge=40, le=100_000, description="Training images over all devices.")
    test_images: int = Field(191, ge=5, le=100_000, description="Test images in all.")
    test: Literal["global", "per-device"] = Field(
        "global", description="One test set for every client, or one per device from its own camera."
    )
    width: int = Field(704, ge=64, le=4096, description="Image width in pixels.")
    height: int = Field(576, ge=64, le=4096, description="Image height in pixels.")
    seed: int = Field(7, ge=0, lt=2**32, description="Seed of the drawing; the same seed gives the same images.")


class FederatedStreet(Frozen):
    """Federated Street (arXiv 1910.11089) in its published JSON form: 956 images, 7 classes."""

    kind: Literal["federated-street"] = "federated-street"
    name: str = Field(
        "street",
        pattern=r"^[a-z0-9][a-z0-9-]{0,63}$",
        description="Name that each machine maps to its own folder.",
    )
    split: Literal[5, 20] = Field(5, description="5 reads device_2_id, 20 reads device_1_id.")
    digest: Sha256 | None = Field(
        None, description="Content digest of the data set; left out, it is filled in when the run starts."
    )


DataSpec = SyntheticStreet | FederatedStreet
