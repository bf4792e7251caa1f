"""Which clients have enough held-out images to be scored on them (``data.holdout.least``)."""

from __future__ import annotations

from collections.abc import Iterable

from tasks.spec.federation import FederationSpec
from tasks.spec.plans import ClientInfo


def has_enough_held_out(spec: FederationSpec, client: ClientInfo) -> bool:
    """Return whether the client has as many held-out images as a figure on them needs."""
    least = spec.data.holdout.least if spec.data.holdout is not None else 1
    return client.holdout_digest is not None and client.holdout_size >= least


def without_figure(spec: FederationSpec, clients: Iterable[ClientInfo]) -> str | None:
    """Return one line that names the clients with too few held-out images for a figure; None if there are none."""
    if spec.data.holdout is None:
        return None
    few = [f"{info.client} ({info.holdout_size})" for info in clients if not has_enough_held_out(spec, info)]
    if not few:
        return None
    return (
        f"no figure on held-out images for client{'s' if len(few) > 1 else ''} {', '.join(few)}: fewer than "
        f"data.holdout.least ({spec.data.holdout.least})"
    )
