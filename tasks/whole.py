"""Records in the store that must be whole: damage is told from all else, and what is damaged is kept when replaced."""

from __future__ import annotations

from collections.abc import Sequence

from infra.errors import StoreCorrupt
from infra.store.flush import flush
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from tasks.errors import SpecError
from tasks.spec.base import Model, parse


class DamagedObject(SpecError):
    """An object of the store is not what was written there: torn, or with bits that have changed.

    ``key`` names it; ``reason`` says what was expected there and found.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: damaged: {reason}")
        self.key, self.reason = key, f"damaged: {reason}"


def read_whole(objects: ObjectStore, key: str, model: type[Model], newest: int) -> Model:
    """The record at ``key``, which is there.

    Raises:
        DamagedObject: it is damaged, or gone.
        SpecError: as :func:`find_whole`.
    """
    record = find_whole(objects, key, model, newest)
    if record is None:
        raise DamagedObject(key, "expected a record, found no object")
    return record


def find_whole(objects: ObjectStore, key: str, model: type[Model], newest: int) -> Model | None:
    """The record at ``key``; None when there is none.

    Raises:
        DamagedObject: it is damaged. A record from before there were digests is, too, when it is of this
            version and does not fit.
        SpecError: it is of a newer version; or it has the content of its digest, and that does not fit.
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
    """Copy damaged objects of a federation, as far as they are there, before others take their place.

    Returns the folder that has the copies, as a prefix of keys.
    """
    there = objects.list(layout.root)
    folder = max(layout.damaged_folders(there), default=0) + 1
    copies = {key: layout.kept_damaged(key, folder) for key in keys if key in there}
    for key, copy in copies.items():
        objects.copy(key, copy)
    flush(objects, copies.values())
    return f"{layout.damaged}{folder:04d}/"
