"""A sheet of test images with true and detected boxes: what the figures look like."""

from __future__ import annotations

import io

from tasks.data.loading import read_sample
from tasks.errors import ClientError, DataError
from tasks.figures.sheet import detection_sheet
from tasks.site import Site
from tasks.spec.records import ClientFailure, WeightRef
from tasks.spec.turns import SheetRequest, TurnReply
from tasks.stop_and_eval import evaluation_batches, load_detector
from tasks.training.evaluation import evaluate


def draw_sheet(site: Site, request: SheetRequest) -> TurnReply:
    """In a slot: a sheet of test images with true and detected boxes, left in the store as a PNG."""
    try:
        return _draw(site, request)
    except (ClientError, DataError) as error:
        return TurnReply(
            failures=(
                ClientFailure(client=request.clients[0], phase="stop_and_eval", kind="client-error", reason=str(error)),
            )
        )


def _draw(site: Site, request: SheetRequest) -> TurnReply:
    data = site.data_of(request.spec.data, request.clients[0])
    samples = data.test[request.clients[0]]
    detector, downloaded = load_detector(site, request.spec, request.model, len(data.classes))
    step = max(len(samples) // request.images, 1)
    chosen = samples[::step][: request.images]
    result = evaluate(
        detector,
        evaluation_batches(site, request.spec, chosen),
        chosen,
        request.spec.evaluation,
        device=request.spec.training.device,
    )
    drawn = [
        (read_sample(sample), (sample.boxes, sample.labels), result.detections[index])
        for index, sample in enumerate(chosen)
    ]
    buffer = io.BytesIO()
    detection_sheet(drawn, data.classes).save(buffer, format="PNG")
    stored = site.weights.put(site.layout(request.federation).sheet, buffer.getvalue())
    return TurnReply(
        images=len(chosen),
        detections=WeightRef(key=stored.key, sha256=stored.sha256, bytes=stored.bytes),
        downloaded=downloaded,
        uploaded=stored.bytes,
    )
