"""Read records from the store, distinguish damage from other faults, and keep copies of damaged objects."""

from __future__ import annotations

from collections.abc import Sequence

from infra.errors import StoreCorrupt
from infra.store.flush import flush
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from tasks.errors import SpecError
from tasks.spec.base import Model, parse


class DamagedObject(SpecError):
    """An object in the store differs from what was written: it is cut off, or bits have changed.

    ``key`` names the object; ``reason`` states what was expected there and what was found.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: damaged: {reason}")
        self.key, self.reason = key, f"damaged: {reason}"


def read_whole(objects: ObjectStore, key: str, model: type[Model], newest: int) -> Model:
    """Return the record at ``key``, which must exist.

    Raises:
        DamagedObject: the record is damaged or missing.
        SpecError: as :func:`find_whole`.
    """
    record = find_whole(objects, key, model, newest)
    if record is None:
        raise DamagedObject(key, "expected a record, found no object")
    return record


def find_whole(objects: ObjectStore, key: str, model: type[Model], newest: int) -> Model | None:
    """Return the record at ``key``; None when there is none.

    Raises:
        DamagedObject: the record is damaged. An old record without a digest counts as damaged if it has this version
            and is not valid.
        SpecError: the record has a newer version, or it matches its digest but is not valid.
    """
    try:
        document, sealed = objects.get_sealed(key)
    except StoreCorrupt as error:
        raise DamagedObject(key, str(error).removeprefix(f"{key}: ")) from None
    if document is None:
        return None
    try:
        return parse(model, document, source=key, newest=newest)
    except SpecError as error:
        of_this_version = not isinstance(document, dict) or document.get("version", newest) == newest
        if sealed or not of_this_version:
            raise
        raise DamagedObject(key, str(error).removeprefix(f"{key}: ")) from None


def set_aside(objects: ObjectStore, layout: FederationLayout, keys: Sequence[str]) -> str:
    """Copy the objects at ``keys``, if they exist, so that they can be overwritten.

    Returns the folder with the copies, as a prefix of keys.
    """
    there = objects.list(layout.root)
    folder = max(layout.damaged_folders(there), default=0) + 1
    copies = {key: layout.kept_damaged(key, folder) for key in keys if key in there}
    for key, copy in copies.items():
        objects.copy(key, copy)
    flush(objects, copies.values())
    return f"{layout.damaged}{folder:04d}/"
