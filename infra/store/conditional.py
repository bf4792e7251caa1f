"""Find out by trial whether a store honours conditional writes: some stores answer 200 and write in any case."""

from __future__ import annotations

import secrets

from infra.errors import SettingsError, StoreRefused
from infra.store.objects import ObjectStore


def honours_conditions(objects: ObjectStore, prefix: str) -> bool:
    """Return whether PutObject with ``If-None-Match: *`` and with ``If-Match`` writes exactly if the condition holds.

    The trial writes an object of its own below ``prefix`` and removes it. A store that honours only one of the two
    conditions counts as one that honours none.

    Raises:
        StoreUnavailable, SettingsError: as :class:`~infra.store.objects.ObjectStore` does.
    """
    folder = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    key = f"{folder}_probe/{secrets.token_hex(8)}"  # no federation's name begins with an underscore
    try:
        return _writes_when_absent(objects, key) and _writes_when_the_same(objects, key)
    except StoreRefused:
        raise
    except SettingsError:  # a store that does not know the header may answer with any error
        return False
    finally:
        objects.delete([key])


_KNOWN: dict[tuple[str | None, str, str], bool] = {}


def known_conditions(objects: ObjectStore, prefix: str) -> bool:
    """Return what :func:`honours_conditions` finds, with one trial per bucket and prefix in each process."""
    location = (objects.settings.endpoint, objects.bucket, prefix)
    if location not in _KNOWN:
        _KNOWN[location] = honours_conditions(objects, prefix)
    return _KNOWN[location]


def _writes_when_absent(objects: ObjectStore, key: str) -> bool:
    first = objects.put_if(key, b"1")
    second = objects.put_if(key, b"2")
    return first is not None and second is None and objects.get_bytes(key) == b"1"


def _writes_when_the_same(objects: ObjectStore, key: str) -> bool:
    found = objects.get_tagged(key)
    if found is None or not found[1].strip('"'):
        return False
    tag = found[1]
    if (now := objects.put_if(key, b"3", tag)) is None or objects.get_bytes(key) != b"3":
        return False
    # Try a tag that this object has no more.
    return now != tag and objects.put_if(key, b"4", tag) is None and objects.get_bytes(key) == b"3"
