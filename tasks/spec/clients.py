"""How a data set's images come to the clients: each device has its own, or fedbench divides them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from tasks.spec.base import CHOSEN, MOST, Frozen
from tasks.spec.name_patterns import pattern_fault

# A path inside the data set's folder: relative, with forward slashes, and without parts that start with a dot.
InsidePath = Annotated[str, StringConstraints(pattern=r"^[^\x00/\\.][^\x00/\\]*(/[^\x00/\\.][^\x00/\\]*)*$")]
Share = Annotated[float, Field(gt=0, le=MOST)]

MAX_CLIENTS = 10_000


def numbered(count: int) -> tuple[str, ...]:
    """Return the ids 1 to ``count``."""
    return tuple(str(number) for number in range(1, count + 1))


class ByFolder(Frozen, title="Folders"):
    """Each device has a folder of its own; the folder's name is the device's."""

    kind: Literal["folders"] = Field("folders", description=CHOSEN)


class ByField(Frozen, title="A field of each image"):
    """Each image says which device it came from.

    In COCO it is an attribute of the image, in VOC the text of an element directly below ``<annotation>``.
    """

    kind: Literal["field"] = Field("field", description=CHOSEN)
    field: str = Field("device", pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,63}$", description="The attribute's name.")


class ByList(Frozen, title="A list"):
    """A YAML or JSON file in the data set's folder maps each device to the names of its images."""

    kind: Literal["list"] = Field("list", description=CHOSEN)
    file: InsidePath = Field("clients.yaml", description="The file, from the data set's folder.")


class ByName(Frozen, title="A part of the name"):
    """A part of each image's name is its device: the text that a regular expression's group matches.

    The name is the image's path in the data set's folder, with forward slashes. A name of more than 200 characters
    matches nothing. Patterns that may take long are refused: at most three of *, + and {…}, few of ? and |, no
    repeated group.
    """

    kind: Literal["name"] = Field("name", description=CHOSEN)
    pattern: str = Field(
        r"([^/_]+)_[^/]*$",
        description="A regular expression of Python with exactly one group, of at most 200 characters. It may match "
        "anywhere in the name.",
    )
    test: Literal["per-device", "global"] = Field(
        "per-device",
        description="per-device: each test image has the device in its name too, or none has one; global: one test set "
        "for all devices, whatever the images' names.",
    )

    @model_validator(mode="after")
    def _check(self) -> ByName:
        fault = pattern_fault(self.pattern)
        if fault is not None:
            raise ValueError(f"pattern: {fault}")
        return self


class _Partition(Frozen):
    """fedbench divides the training images among clients 1 to ``clients``; all are scored on the whole test set."""

    clients: int = Field(5, ge=1, le=MAX_CLIENTS, description="Number of clients; each gets at least one image.")
    seed: int = Field(1, ge=0, lt=2**32, description="Seed of the division.")


class Iid(_Partition, title="Divided, IID"):
    """Images are shuffled and dealt out: the clients' numbers of images differ by at most one."""

    kind: Literal["iid"] = Field("iid", description=CHOSEN)


class Dirichlet(_Partition, title="Divided, Dirichlet"):
    """Each client's mix of classes is drawn from a Dirichlet distribution around the data set's mix (arXiv 1909.06335).

    Hsu et al., Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification.
    """

    kind: Literal["dirichlet"] = Field("dirichlet", description=CHOSEN)
    alpha: float = Field(
        0.5, gt=0, le=1e6, description="Small: few classes for each client; large: near the data set's mix."
    )


class BySize(_Partition, title="Divided, by size"):
    """Images are shuffled and cut into unequal parts: by shares, or by a power law (client k gets k^-exponent)."""

    kind: Literal["size"] = Field("size", description=CHOSEN)
    exponent: float = Field(1.0, ge=0, le=10, description="Exponent of the power law; 0 gives equal sizes.")
    shares: tuple[Share, ...] | None = Field(
        None, description="Relative size of each client, instead of the power law."
    )

    @model_validator(mode="after")
    def _check(self) -> BySize:
        if self.shares is not None and len(self.shares) != self.clients:
            raise ValueError(f"shares: expected {self.clients}, one a client, found {len(self.shares)}")
        return self


Partition = Iid | Dirichlet | BySize
# The images name their devices: by a field, in a list, or by their own names.
Named = ByField | ByList | ByName
VocClients = Annotated[ByFolder | ByField | ByList | ByName | Iid | Dirichlet | BySize, Field(discriminator="kind")]
CocoClients = Annotated[ByField | ByList | ByName | Iid | Dirichlet | BySize, Field(discriminator="kind")]
YoloClients = Annotated[Iid | Dirichlet | BySize | ByFolder | ByList | ByName, Field(discriminator="kind")]
NameClients = Annotated[ByName | ByList | Iid | Dirichlet | BySize, Field(discriminator="kind")]
DividedClients = Annotated[Iid | Dirichlet | BySize | ByName | ByList, Field(discriminator="kind")]


def devices_of(clients: ByFolder | Named | Partition) -> tuple[str, ...] | None:
    """Return the numbers of a division's clients; None if the data must be read to know the devices."""
    return numbered(clients.clients) if isinstance(clients, _Partition) else None
