"""An IAM policy with the rights that a silo's worker needs in the store, and no others.

A silo reads global weights, the state that a method shares with all clients, the states and fine-tuned models of its
own clients, and the sessions of its own pool. It writes its residents' answers, its clients' updates, states and
fine-tuned models, and its parts of evaluations. It cannot read the server's state or the states of other clients. It
cannot write the updates and states of others, plans or commits, and it can list and delete nothing.

It shares one object with other silos: the sheet of detections. If another silo has overwritten it, the coordinator
notices, because replies name objects by sha256.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from infra.store.layout import FederationLayout
from infra.turns.mailbox import ANSWER, session_folder

READ = ("s3:GetObject",)
WRITE = ("s3:PutObject", "s3:AbortMultipartUpload")
ANY = "*"  # in a policy it matches slashes too
ROUND_DIGITS = (4, 5, 6)  # of the number of a round, which is at most 100,000


def read_patterns(prefix: str, pool: str, clients: Sequence[str], federation: str = ANY) -> tuple[str, ...]:
    """Return patterns of the keys that residents of ``pool`` read for the silo's ``clients``."""
    layout = FederationLayout(prefix, federation)
    # A pattern with ANY for the round would also match the state of a client that is named "shared".
    name = layout.shared_state(0).removeprefix(layout.round(0))
    shared = [f"{layout.rounds}{'?' * digits}/{name}" for digits in ROUND_DIGITS]
    states = [_any_round(layout, layout.client_state(0, client)) for client in clients]
    model = _any_round(layout, layout.global_weights(0))
    tuned = [_any_tuning(layout, layout.fine_tuned_weights(0, client)) for client in clients]
    return (f"{session_folder(layout, pool, ANY)}{ANY}", model, *shared, *states, *tuned)


def write_patterns(prefix: str, pool: str, clients: Sequence[str], federation: str = ANY) -> tuple[str, ...]:
    """Return patterns of the keys that residents of ``pool`` write for the silo's ``clients``."""
    layout = FederationLayout(prefix, federation)
    of_rounds = []
    for client in clients:
        of_rounds += [
            layout.update_weights(0, client),
            layout.update_record(0, client),
            layout.partial_sum(0, client),
            layout.client_state(0, client),
            layout.evaluation_part(0, client, ANY),
        ]
    of_tuning = [
        _any_tuning(layout, key)
        for client in clients
        for key in (layout.fine_tuned_weights(0, client), layout.fine_tuned_update(0, client))
    ]
    answers = f"{session_folder(layout, pool, ANY)}{ANY}{ANSWER}"
    return (answers, layout.sheet, *(_any_round(layout, key) for key in of_rounds), *of_tuning)


def silo_policy(bucket: str, prefix: str, pool: str, clients: Sequence[str], federation: str = ANY) -> dict[str, Any]:
    """Return the IAM policy document. ``federation``: the only one that it allows; by default all below ``prefix``."""

    def statement(name: str, actions: Sequence[str], patterns: Sequence[str]) -> dict[str, Any]:
        resources = [f"arn:aws:s3:::{bucket}/{pattern}" for pattern in patterns]
        return {"Sid": name, "Effect": "Allow", "Action": list(actions), "Resource": resources}

    return {
        "Version": "2012-10-17",
        "Statement": [
            statement("Read", READ, read_patterns(prefix, pool, clients, federation)),
            statement("Write", WRITE, write_patterns(prefix, pool, clients, federation)),
        ],
    }


def _any_round(layout: FederationLayout, key: str) -> str:
    """Return the pattern that matches ``key``, which is of round 0, in any round."""
    return f"{layout.rounds}{ANY}/{key.removeprefix(layout.round(0))}"


def _any_tuning(layout: FederationLayout, key: str) -> str:
    """Return the pattern that matches ``key``, which is of fine-tuning after round 0, after any round."""
    first = layout.fine_tuned(0)
    return f"{first.removesuffix('0000/')}{ANY}/{key.removeprefix(first)}"
