"""Work under a lease: a task that ends with it, and a store that refuses writes once it is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

from infra.store.lease import StoreLease
from infra.store.objects import ObjectStore


@contextlib.asynccontextmanager
async def have(lease: StoreLease) -> AsyncIterator[StoreLease]:
    """Hold ``lease`` in this context. The task may be cancelled while it waits; losing the lease cancels it too."""
    try:
        await asyncio.to_thread(lease.acquire)
    except asyncio.CancelledError:
        lease.abandon()
        raise
    try:
        async with lease.ends_with_it():
            yield lease
    finally:
        await asyncio.to_thread(lease.release)


class LeasedStore(ObjectStore):
    """The store for the holder of ``lease``. Writing raises RunLocked once the lease is lost."""

    def __init__(self, objects: ObjectStore, lease: StoreLease) -> None:
        super().__init__(objects.settings, objects.outage_seconds)
        self._connected = objects
        self._lease = lease

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a store under a lease belongs to the lease's process; pass on a plain ObjectStore")

    def put_bytes(self, key: str, body: bytes) -> None:
        self._lease.require()
        super().put_bytes(key, body)

    def put_file(self, key: str, path: Path) -> None:
        self._lease.require()
        super().put_file(key, path)

    def copy(self, key: str, target: str) -> None:
        self._lease.require()
        super().copy(key, target)

    def remove(self, keys: Iterable[str]) -> dict[str, str]:
        self._lease.require()
        return super().remove(keys)

    def abort_upload(self, key: str, upload_id: str) -> None:
        self._lease.require()
        super().abort_upload(key, upload_id)
