"""A client's part of phase 1, ``wake_up``. It runs in a slot, which does not import Prefect."""

from __future__ import annotations

from pydantic import ValidationError

from tasks.data.samples import class_counts, samples_digest
from tasks.errors import FedbenchError
from tasks.site import Site
from tasks.spec.messages import explain
from tasks.spec.plans import ClientFailure, ClientInfo
from tasks.spec.turns import TurnReply, WakeUpRequest


def client_wake_up(site: Site, request: WakeUpRequest) -> TurnReply:
    """Return the data that each client of the turn has, or why it is not ready. Runs in a slot."""
    site.look_again(request.spec.data, request.clients)  # missing data may have arrived since the last time
    ready, failures = [], []
    for client in request.clients:
        try:
            data = site.data_of(request.spec.data, client)
            test, held = data.test[client], data.scored(client, "holdout")
            ready.append(
                ClientInfo(
                    client=client,
                    train_size=len(data.train[client]),
                    test_size=len(test),
                    test_digest=samples_digest(test),
                    holdout_size=len(held),
                    holdout_digest=samples_digest(held) if held else None,
                    class_counts=class_counts(data.train[client], data.classes),
                    host=site.host,
                    device=site.device_name(request.spec),
                )
            )
        except (FedbenchError, ValidationError) as error:
            reason = (
                explain(error, ClientInfo, f"client {client}") if isinstance(error, ValidationError) else str(error)
            )
            failures.append(ClientFailure(client=client, phase="wake_up", kind="client-error", reason=reason))
    return TurnReply(ready=tuple(ready), failures=tuple(failures))
