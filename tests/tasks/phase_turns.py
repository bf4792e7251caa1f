"""Turns for the tests of phases. ``<folder>/script.json`` says what each client does at each attempt.

``FEDBENCH_TEST_FOLDER`` names the folder. Every attempt adds a line to its file ``attempts``. A client that succeeds
creates a file in its folder ``done``.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.spec.turns import AnyRequest, TurnReply, UpdateRequest


def write_script(folder: Path, script: Mapping[str, Sequence[str]]) -> None:
    (folder / "done").mkdir()
    (folder / "attempts").touch()
    (folder / "script.json").write_text(json.dumps(script))


def attempts(folder: Path) -> list[tuple[str, int]]:
    """Return (client, process id) of each attempt so far."""
    lines = (folder / "attempts").read_text().splitlines()
    return [(line.split()[0], int(line.split()[1])) for line in lines]


def take_turn(request: AnyRequest) -> TurnReply:
    """Do the script's action: ok, die, hang, unreachable, corrupt, client-error, bug. The last action repeats.

    In phases other than ``request_update``, ``ok`` adds nothing to the reply.
    """
    from infra.errors import StoreCorrupt, StoreUnavailable
    from tasks.spec.plans import ClientFailure, WeightRef
    from tasks.spec.turns import TurnReply
    from tests.records import update_record

    folder = Path(os.environ["FEDBENCH_TEST_FOLDER"])
    script = json.loads((folder / "script.json").read_text())
    updates, failures = [], []
    for client in request.clients:
        before = sum(name == client for name, _ in attempts(folder))
        with (folder / "attempts").open("a") as file:
            file.write(f"{client} {os.getpid()}\n")
        action = script[client][min(before, len(script[client]) - 1)]
        if action == "die":
            os._exit(1)
        elif action == "hang":
            time.sleep(60)
        elif action == "unreachable":
            raise StoreUnavailable("bucket b at http://nowhere does not answer")
        elif action == "corrupt":
            raise StoreCorrupt("global.safetensors: expected sha256 a, found sha256 b")
        elif action == "bug":
            raise ZeroDivisionError("a mistake of the program")
        elif action == "client-error":
            failures.append(
                ClientFailure(client=client, phase="request_update", kind="client-error", reason="bad image")
            )
        else:
            if request.phase == "request_update":
                updates.append(
                    update_record(
                        client,
                        federation=request.federation,
                        round=request.round,
                        spec_digest=request.spec_digest,
                        model=request.model.sha256,
                        weights=WeightRef(key="k", sha256="c" * 64, bytes=1),
                        train_size=3,
                        host="here",
                    )
                )
            (folder / "done" / client).touch()
    return TurnReply(updates=tuple(updates), failures=tuple(failures))


def unasked_update(request: UpdateRequest) -> TurnReply:
    """Answer for client 1 as asked and then again, for 2 with a wrong seed, for 3 with a wrong round, for 4 unasked."""
    from tasks.spec.plans import UpdateRecord, WeightRef
    from tasks.spec.turns import TurnReply
    from tests.records import update_record

    updates: list[UpdateRecord] = []
    for client in (*request.clients, "1", "4"):
        key = f"phases/{request.federation}/rounds/{request.round:04d}/updates/{client}.safetensors"
        updates.append(
            update_record(
                client,
                federation=request.federation,
                round=request.round + (client == "3"),
                spec_digest=request.spec_digest,
                model=request.model.sha256,
                seed=request.seeds.get(client, 0) + (client == "2"),
                weights=WeightRef(key=key, sha256="c" * 64, bytes=1),
                train_size=3,
                train_loss=1.0 + len(updates),
                host="here",
            )
        )
    return TurnReply(updates=tuple(updates))
