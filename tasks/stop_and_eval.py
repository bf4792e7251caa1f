"""Phases 6 and 7, ``stop_and_eval`` and ``client_eval``: the new global model, scored on every client's test set.

Clients whose test sets have the same digest share one evaluation. Its batches are spread over the slots; each part
leaves its detections in the store, and the figures are computed once, over all of them.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE
from safetensors.numpy import load_file, save

from infra.place import Place, current_place
from tasks.data.loading import EvaluationLoader, evaluation_loader
from tasks.data.samples import ImageSample, samples_digest
from tasks.detectors.base import Detector
from tasks.detectors.state import load_state
from tasks.errors import ClientError, DataError, ModelDiverged
from tasks.metrics.detections import ImageDetections, in_order, merge, pack, unpack
from tasks.metrics.scoring import evaluation_record
from tasks.metrics.truth import Truth, pack_truth, unpack_truth
from tasks.site import Site
from tasks.spec.federation import FederationSpec
from tasks.spec.records import ClientFailure, ClientInfo, EvaluationRecord, WeightRef
from tasks.spec.turns import EvaluationRequest, TurnReply
from tasks.training.evaluation import PartResult, evaluate
from tasks.turns import hand_out, report_failures


def client_eval(site: Site, request: EvaluationRequest) -> TurnReply:
    """In a slot: losses and detections of batches ``part``, ``part + parts``, … of the clients' common test set."""
    try:
        data = site.data_of(request.spec.data, request.clients[0])
        samples = data.test[request.clients[0]]
        digest = samples_digest(samples)
        if digest != request.test_digest:
            raise ClientError(
                f"client {request.clients[0]}: its test set has changed since wake_up: "
                f"expected digest {request.test_digest}, found {digest}"
            )
        detector, downloaded = load_detector(site, request.spec, request.model, len(data.classes))
        result, truth = _evaluate_part(site, request, detector, samples)
    except (ClientError, DataError) as error:
        failed = ClientFailure(
            client=request.clients[0],
            phase="stop_and_eval",
            kind="model-diverged" if isinstance(error, ModelDiverged) else "client-error",
            reason=str(error),
        )
        return TurnReply(failures=tuple(failed.model_copy(update={"client": client}) for client in request.clients))
    tensors = {f"detections/{name}": array for name, array in pack(result.detections).items()}
    tensors |= {f"truth/{name}": array for name, array in pack_truth(truth).items()}
    part = f"{request.test_digest[:16]}-{request.part:03d}-of-{request.parts:03d}"
    stored = site.weights.put(site.layout(request.federation).evaluation_tensors(request.round, part), save(tensors))
    return TurnReply(
        images=result.images,
        batch_losses=tuple(result.batch_losses),
        detections=WeightRef(key=stored.key, sha256=stored.sha256, bytes=stored.bytes),
        downloaded=downloaded,
        uploaded=stored.bytes,
    )


def load_detector(site: Site, spec: FederationSpec, model: WeightRef, classes: int) -> tuple[Detector, int]:
    fetched = site.weights.get(model.key, model.sha256, model.bytes)
    detector = site.detector(spec, classes)
    load_state(detector, fetched.path)
    return detector, fetched.downloaded


def evaluation_batches(site: Site, spec: FederationSpec, samples: Sequence[ImageSample]) -> EvaluationLoader:
    return evaluation_loader(
        samples,
        width=spec.detector.width,
        height=spec.detector.height,
        batch_size=spec.evaluation.batch_size,
        cache=site.images,
    )


def _evaluate_part(
    site: Site, request: EvaluationRequest, detector: Detector, samples: Sequence[ImageSample]
) -> tuple[PartResult, dict[int, Truth]]:
    loader = evaluation_batches(site, request.spec, samples)
    batches = (loader[number] for number in range(request.part, len(loader), request.parts))
    result = evaluate(detector, batches, samples, request.spec.evaluation, device=request.spec.training.device)
    chosen = {index: samples[index] for index in result.detections}
    return result, {index: (sample.boxes, sample.labels, sample.difficult) for index, sample in chosen.items()}


def clients_by_test_set(clients: Sequence[ClientInfo]) -> dict[str, list[ClientInfo]]:
    """Clients by the digest of their test set, in client order."""
    groups: dict[str, list[ClientInfo]] = {}
    for info in clients:
        groups.setdefault(info.test_digest, []).append(info)
    return groups


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
) -> tuple[EvaluationRecord | None, list[ClientFailure], int, int]:
    """Score ``model`` on the test set that ``clients`` share.

    Returns the evaluation (None when it failed), the failures, and the bytes down and up.
    """
    place = current_place()
    started = time.monotonic()
    size, digest = clients[0].test_size, clients[0].test_digest
    names = tuple(info.client for info in clients)
    if size == 0:
        return None, [], 0, 0
    parts = min(place.slots.count, math.ceil(size / spec.evaluation.batch_size))
    request = EvaluationRequest(
        federation=federation,
        spec=spec,
        clients=names,
        round=round_number,
        model=model,
        test_digest=digest,
        part=0,
        parts=parts,
    )
    # The test set is the same at all of them, so that any place may do any part.
    places = place.slots.split(names)
    answers = await asyncio.gather(
        *(
            hand_out(
                place,
                request.model_copy(update={"part": part, "clients": places[part % len(places)]}),
                deadline=spec.participation.evaluation_deadline,
            )
            for part in range(parts)
        )
    )
    replies = [reply for answer in answers for reply in answer]
    failures = {failure.client: failure for reply in replies for failure in reply.failures}
    down, up = sum(reply.downloaded for reply in replies), sum(reply.uploaded for reply in replies)
    if failures:
        report_failures(place, list(failures.values()))
        return None, list(failures.values()), down, up
    evaluation = await asyncio.to_thread(score, place, spec, clients, replies, started)
    place.reporter.client_done(
        "stop_and_eval",
        label.removeprefix("clients ").removeprefix("client "),
        f"map50_voc10 {_shown(evaluation.map50_voc10)}, loss {_shown(evaluation.loss)} on {size} images",
    )
    return evaluation, [], down, up


def score(
    place: Place,
    spec: FederationSpec,
    clients: Sequence[ClientInfo],
    replies: Sequence[TurnReply],
    started: float,
) -> EvaluationRecord:
    """The figures of one test set from its parts; the same however it was parted."""
    found: list[dict[int, ImageDetections]] = []
    truth: list[dict[int, Truth]] = []
    for reply in replies:
        if reply.detections is None:
            continue
        ref = reply.detections
        arrays = load_file(place.weights.get(ref.key, ref.sha256, ref.bytes).path)
        found.append(unpack(_under("detections/", arrays), source=ref.key))
        truth.append(unpack_truth(_under("truth/", arrays), source=ref.key))
    images = sum(reply.images for reply in replies)
    return evaluation_record(
        in_order(merge(truth), images),
        in_order(merge(found), images),
        [value for reply in replies for value in reply.batch_losses],
        clients=tuple(info.client for info in clients),
        classes=tuple(clients[0].class_counts),
        test_digest=clients[0].test_digest,
        spec=spec.evaluation,
        started=started,
    )


def _under(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
