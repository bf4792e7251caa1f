"""What the credentials of a silo's worker need in the store, and no more, as an IAM policy.

A silo reads global weights and its own letters, and writes its answers, its clients' updates and what the test set
gave; not the updates of others, no plan, no commit. It lists and deletes nothing.

One thing that it may write is not its own alone: the sheet of detections. One that was written over is noticed:
replies name objects by sha256.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from infra.store.layout import FederationLayout
from infra.turns.mailbox import ANSWER, session_folder

READ = ("s3:GetObject",)
WRITE = ("s3:PutObject", "s3:AbortMultipartUpload")
ANY = "*"  # in a policy it stands for slashes too


def read_patterns(prefix: str, pool: str, federation: str = ANY) -> tuple[str, ...]:
    """Keys that residents of ``pool`` read."""
    layout = FederationLayout(prefix, federation)
    return (f"{session_folder(layout, pool, ANY)}{ANY}", _any_round(layout, layout.global_weights(0)))


def write_patterns(prefix: str, pool: str, clients: Sequence[str], federation: str = ANY) -> tuple[str, ...]:
    """Keys that residents of ``pool`` write, where the silo has ``clients``."""
    layout = FederationLayout(prefix, federation)
    of_rounds = []
    for client in clients:
        of_rounds += [
            layout.update_weights(0, client),
            layout.update_record(0, client),
            layout.partial_sum(0, client),
            layout.evaluation_part(0, client, ANY),
        ]
    answers = f"{session_folder(layout, pool, ANY)}{ANY}{ANSWER}"
    return (answers, layout.sheet, *(_any_round(layout, key) for key in of_rounds))


def silo_policy(bucket: str, prefix: str, pool: str, clients: Sequence[str], federation: str = ANY) -> dict[str, Any]:
    """An IAM policy document. ``federation``: the name of the only one; left out, all below ``prefix``."""

    def statement(name: str, actions: Sequence[str], patterns: Sequence[str]) -> dict[str, Any]:
        resources = [f"arn:aws:s3:::{bucket}/{pattern}" for pattern in patterns]
        return {"Sid": name, "Effect": "Allow", "Action": list(actions), "Resource": resources}

    return {
        "Version": "2012-10-17",
        "Statement": [
            statement("Read", READ, read_patterns(prefix, pool, federation)),
            statement("Write", WRITE, write_patterns(prefix, pool, clients, federation)),
        ],
    }


def _any_round(layout: FederationLayout, key: str) -> str:
    """``key`` of round 0 as that of any round."""
    return f"{layout.rounds}{ANY}/{key.removeprefix(layout.round(0))}"
