"""Compare the states that a round's record names with a listing of the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tasks.spec.plans import WeightRef
from tasks.spec.records import RoundRecord


@dataclass(frozen=True)
class NamedState:
    """A state that a round's record names. ``owner``: ``the server``, ``all clients`` or a client, for messages."""

    ref: WeightRef
    owner: str

    def fault(self, there: Mapping[str, int]) -> str | None:
        """Return what is wrong with the state's object by ``there``, the store's sizes by key; None: nothing."""
        size = there.get(self.ref.key)
        if size == self.ref.bytes:
            return None
        found = "no object" if size is None else f"{size} bytes"
        return f"state of {self.owner}: expected {self.ref.bytes} bytes, found {found}"


def states_of_server(record: RoundRecord) -> Iterator[NamedState]:
    """Yield the server's state and the one that it shares with all clients, if the method keeps them."""
    for ref, owner in ((record.server, "the server"), (record.shared, "all clients")):
        if ref is not None:
            yield NamedState(ref, owner)


def states_of_clients(record: RoundRecord) -> Iterator[NamedState]:
    """Yield the state of each client that has one."""
    for client, ref in record.states.items():
        yield NamedState(ref, f"client {client}")
