"""The classes that each client labels: ``data.label_space``. A client that is not named labels all classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field, StringConstraints

from tasks.spec.base import LONGEST_CLASS, MOST_CLASSES, MOST_CLIENTS, ClientId

Key = TypeVar("Key")
Value = TypeVar("Value")


class HashableDict(dict[Key, Value]):
    """A mapping that is not changed after it was made, so that a frozen model with one can be a key."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


Classes = Annotated[
    tuple[Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_CLASS)], ...],
    Field(min_length=1, max_length=MOST_CLASSES),
]
LabelSpace = Annotated[dict[ClientId, Classes], Field(max_length=MOST_CLIENTS), AfterValidator(HashableDict)]


def by_label_space(
    space: Mapping[str, Sequence[str]] | None, counts: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[str, int | None]]:
    """Return counts by device and class, with None where the device does not label the class."""
    return {
        device: {name: None if name not in (space or {}).get(device, (name,)) else count for name, count in own.items()}
        for device, own in counts.items()
    }


def label_space_faults(
    space: Mapping[str, Sequence[str]],
    *,
    devices: Sequence[str] | None,
    classes: Sequence[str] | None,
) -> Iterator[str]:
    """Yield the mistakes in ``space``, each from the field's name below ``data``.

    devices, classes: of the data set; None if they are not known yet.
    """
    if not space:
        yield "label_space: expected at least one device with its classes, found none"
    for client, named in space.items():
        if len(set(named)) < len(named):
            yield f"label_space.{client}: expected each class once"
        unknown = [name for name in named if classes is not None and name not in classes]
        if classes is not None and unknown:
            yield f"label_space.{client}: expected classes of {', '.join(classes)}, found {', '.join(unknown)}"
    if devices is None:
        return
    strangers = [client for client in space if client not in devices]
    if strangers:
        listed = f"{devices[0]} to {devices[-1]}" if len(devices) > 1 else ", ".join(devices) or "(none)"
        yield f"label_space: expected devices of the data set, {listed}, found {', '.join(strangers)}"
    if classes is not None and set(space) == set(devices):
        without = [name for name in classes if not any(name in named for named in space.values())]
        if without:
            yield f"label_space: expected each class to be labelled by a device, found none for {', '.join(without)}"
