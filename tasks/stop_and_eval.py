"""Phase 6, ``stop_and_eval``: score the new global model on every client's test set (:mod:`tasks.client_eval`).

``evaluation.on`` says whether clients' held-out images are scored instead, or also. Clients whose test sets have the
same digest share one evaluation. Its batches are spread over the slots as parts. Each part stores its detections, and
the figures are computed once, over all parts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.errors import DataError
from tasks.evaluation_parts import Part, read_part
from tasks.hand_out import hand_out, report_failures
from tasks.handles import Handles, current_handles
from tasks.held_out import has_enough_held_out
from tasks.metrics.detections import in_order, merge
from tasks.metrics.scored import ScoredImages
from tasks.metrics.scoring import evaluation_record
from tasks.replies import failure_of
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import ClientFailure, ClientInfo, WeightRef
from tasks.spec.records import EvaluationRecord
from tasks.spec.training import ScoredOn
from tasks.spec.turns import AnyRequest, EvaluationRequest, TurnReply


@dataclass(frozen=True)
class Evaluations:
    """The evaluations of one model on one or several test sets or clients' held-out images.

    records: one for each test set and each client's held-out images that were scored.
    unscored: clients without an evaluation, and why.
    personal: the evaluations of clients' own models, one client each. without_personal: clients without, and why.
    bytes_down, bytes_up: bytes that the clients read from the store and wrote to it.
    scored: truth and detections of the images that decide: without those of own models beside a shared one.
    """

    records: list[EvaluationRecord] = field(default_factory=list)
    unscored: list[ClientFailure] = field(default_factory=list)
    bytes_down: int = 0
    bytes_up: int = 0
    personal: list[EvaluationRecord] = field(default_factory=list)
    without_personal: list[ClientFailure] = field(default_factory=list)
    scored: list[ScoredImages] = field(default_factory=list)


def clients_by_test_set(clients: Sequence[ClientInfo]) -> dict[tuple[str, int], list[ClientInfo]]:
    """Group the clients by digest and number of images of their test set, in client order.

    A client that reports the digest of another but a different number of images is evaluated separately, and so does
    not disturb the other's evaluation.
    """
    groups: dict[tuple[str, int], list[ClientInfo]] = {}
    for info in clients:
        groups.setdefault((info.test_digest, info.test_size), []).append(info)
    return groups


def images_to_score(spec: FederationSpec, clients: Sequence[ClientInfo]) -> list[tuple[ScoredOn, list[ClientInfo]]]:
    """Return the parts of the data that a round scores, each with the clients that share it.

    Each client's held-out images are scored by themselves, at its own machine, because no other client needs to have
    them. Clients with fewer than ``data.holdout.least`` are left out.
    """
    groups: list[tuple[ScoredOn, list[ClientInfo]]] = []
    if "test" in spec.evaluation.parts:
        groups += [("test", group) for group in clients_by_test_set(clients).values()]
    if "holdout" in spec.evaluation.parts:
        groups += [("holdout", [info]) for info in clients if has_enough_held_out(spec, info)]
    return groups


def own_images_to_score(spec: FederationSpec, clients: Sequence[ClientInfo]) -> list[tuple[ScoredOn, ClientInfo]]:
    """Return the parts of the data on which clients' own models are scored in a round, each with its client.

    A client's model is scored at the client, also where all have the same test set.
    """
    found: list[tuple[ScoredOn, ClientInfo]] = []
    for part in spec.evaluation.parts:
        enough = [info for info in clients if part == "test" or has_enough_held_out(spec, info)]
        found += [(part, info) for info in enough if info.scored_size(part)]
    return found


@task(
    name="stop_and_eval",
    task_run_name="stop_and_eval · round {round_number} · {label}",
    cache_policy=NO_CACHE,
    persist_result=False,
)
async def stop_and_eval(
    federation: str,
    spec: FederationSpec,
    round_number: int,
    clients: Sequence[ClientInfo],
    model: WeightRef,
    label: str,
    on: ScoredOn = "test",
    personal: bool = False,
    own: WeightRef | None = None,
) -> Evaluations:
    """Score ``model`` on the test set, or with ``on: holdout`` on the held-out images, that ``clients`` share.

    personal: score the own model of the one client instead, which ``model`` and its state ``own`` make up.

    Returns one evaluation, of the clients that did not fail; none if it failed everywhere or there are no images.
    """
    handles = current_handles()
    started = time.monotonic()
    size = clients[0].scored_size(on)
    digest = clients[0].test_digest if on == "test" else clients[0].holdout_digest
    names = tuple(info.client for info in clients)
    if size == 0 or digest is None:
        return Evaluations()
    # Own models of several clients are scored at a time, and each is loaded once.
    parts = 1 if personal else min(handles.slots.count, -(-size // spec.evaluation.batch_on(spec.training.device)))
    request = EvaluationRequest(
        federation=federation,
        spec=spec,
        clients=names,
        round=round_number,
        model=model,
        personal=personal,
        own=own,
        on=on,
        test_digest=digest,
        test_size=size,
        part=0,
        parts=parts,
    )
    classes = spec.class_order(clients[0].class_counts)
    requests = [request.model_copy(update={"part": part}) for part in range(parts)]
    answers = await asyncio.gather(*(_ask_for_part(handles, request, len(classes)) for request in requests))
    found = [part for part, _ in answers if part is not None]
    replies = [reply for _, replies in answers for reply in replies]
    failures = {item.client: item for reply in replies for item in reply.failures}
    scored = tuple(name for name in names if name not in failures) if len(found) == parts else ()
    evaluation = None
    if scored:
        try:
            evaluation = await asyncio.to_thread(score, spec, scored, classes, digest, found, started, on)
        except DataError as error:
            failures |= {name: failure_of("stop_and_eval", name, str(error)) for name in scored}
    what = ("its own model: " if personal else "") + ("held-out images: " if on == "holdout" else "")
    if what:
        failures = {
            name: ClientFailure.model_validate(item.model_dump() | {"reason": f"{what}{item.reason}"})
            for name, item in failures.items()
        }
    report_failures(handles, list(failures.values()))
    if evaluation is not None:
        handles.reporter.client_done(
            "stop_and_eval",
            label.removeprefix("clients ").removeprefix("client "),
            f"map50_voc10 {_formatted(evaluation.map50_voc10)}, loss {_formatted(evaluation.loss)} on {size} "
            f"{'images' if on == 'test' else 'held-out images'}",
        )
    records, unscored = [] if evaluation is None else [evaluation], list(failures.values())
    kept = [] if personal and spec.strategy.shared_model else records
    return Evaluations(
        records=[] if personal else records,
        unscored=[] if personal else unscored,
        bytes_down=sum(reply.downloaded for reply in replies),
        bytes_up=sum(reply.uploaded for reply in replies),
        personal=records if personal else [],
        without_personal=unscored if personal else [],
        scored=[scored_images(record, found) for record in kept],
    )


def joined(evaluations: Iterable[Evaluations]) -> Evaluations:
    """Return the evaluations of one round's model, and of the clients' own, as one."""
    found = tuple(evaluations)
    return Evaluations(
        records=[record for item in found for record in item.records],
        unscored=[failure for item in found for failure in item.unscored],
        bytes_down=sum(item.bytes_down for item in found),
        bytes_up=sum(item.bytes_up for item in found),
        personal=[record for item in found for record in item.personal],
        without_personal=[failure for item in found for failure in item.without_personal],
        scored=[images for item in found for images in item.scored],
    )


async def _ask_for_part(
    handles: Handles, request: EvaluationRequest, classes: int
) -> tuple[Part | None, Sequence[TurnReply]]:
    """Return one part of the evaluation, None if it failed everywhere; and the replies, failures included.

    All clients of ``request`` have the same test set, so any silo can evaluate any part. If one silo fails, the next
    does its part, and only the failed silo's clients are dropped.
    """
    found: list[Part] = []

    async def accept(asked: AnyRequest, reply: TurnReply) -> None:
        assert isinstance(asked, EvaluationRequest)
        found.append(await asyncio.to_thread(read_part, handles, asked, reply, classes))

    replies: list[TurnReply] = []
    silos = handles.slots.split(request.clients)
    for turn in range(len(silos)):
        clients = silos[(request.part + turn) % len(silos)]
        replies += await hand_out(
            handles,
            request.model_copy(update={"clients": clients}),
            deadline=request.spec.participation.evaluation_deadline,
            accept=accept,
        )
        if found:
            return found[0], replies
    return None, replies


def score(
    spec: FederationSpec,
    clients: Sequence[str],
    classes: Sequence[str],
    test_digest: str,
    parts: Sequence[Part],
    started: float,
    on: ScoredOn = "test",
) -> EvaluationRecord:
    """Return the figures of ``clients`` on their images ``on`` from all parts of these images.

    They do not depend on how the images were divided.

    Raises:
        DataError: the parts are not those of one set of images.
    """
    truth, found = merge(part.truth for part in parts), merge(part.detections for part in parts)
    return evaluation_record(
        in_order(truth, len(truth)),
        in_order(found, len(truth)),
        [value for part in parts for value in part.batch_losses],
        clients=tuple(clients),
        classes=classes,
        on=on,
        test_digest=test_digest,
        spec=spec.evaluation,
        started=started,
    )


def scored_images(record: EvaluationRecord, parts: Sequence[Part]) -> ScoredImages:
    """Return the truth and detections of all ``parts``, whose figures ``record`` has."""
    truth, found = merge(part.truth for part in parts), merge(part.detections for part in parts)
    return ScoredImages(
        record.clients,
        record.on,
        record.test_digest,
        tuple(in_order(truth, len(truth))),
        tuple(in_order(found, len(truth))),
    )


def _formatted(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
