"""Draw a sheet of test images with true and detected boxes."""

from __future__ import annotations

import io

from PIL import Image

from infra.errors import BadReply, StoreCorrupt
from tasks.client_eval import evaluation_batches, load_detector, load_personal
from tasks.data.image_cache import read_sample
from tasks.errors import ClientError, DataError
from tasks.figures.sheet import detection_sheet, most_pixels
from tasks.handles import Handles
from tasks.site import Site
from tasks.spec.plans import ClientFailure, WeightRef
from tasks.spec.turns import SheetRequest, TurnReply
from tasks.training.evaluation import evaluate


def draw_sheet(site: Site, request: SheetRequest) -> TurnReply:
    """Draw a sheet of test images with true and detected boxes, and store it as a PNG. Runs in a slot."""
    try:
        return _draw(site, request)
    except (ClientError, DataError) as error:
        return TurnReply(
            failures=(
                ClientFailure(client=request.clients[0], phase="stop_and_eval", kind="client-error", reason=str(error)),
            )
        )


def read_sheet(handles: Handles, request: SheetRequest, reply: TurnReply) -> bytes:
    """Return the PNG in the store that ``reply`` to ``request`` names, after checking that it decodes.

    Raises:
        BadReply: it is missing or too large, has another sha256, or is no RGB picture in PNG of the expected size.
        StoreUnavailable: the store does not answer.
    """
    ref, key, most = reply.detections, handles.layout.sheet, most_pixels(request.images)
    if ref is None or ref.key != key:
        raise BadReply(f"reply: detections: expected {key}, found {ref.key[:200] if ref else 'none'}")
    if ref.bytes > 3 * most:  # no PNG that we draw is larger than its pixels
        raise BadReply(f"{key}: expected at most {3 * most} bytes, found {ref.bytes}")
    try:
        content = handles.weights.get(ref.key, ref.sha256, ref.bytes).path.read_bytes()
    except StoreCorrupt as error:
        raise BadReply(str(error)) from None
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as sheet:
            if sheet.mode != "RGB" or sheet.width * sheet.height > most:
                raise ValueError(f"{sheet.mode}, {sheet.width} x {sheet.height}")
            sheet.load()
    except Exception as error:  # a decoder may raise anything on strange bytes
        raise BadReply(f"{key}: expected an RGB picture in PNG of at most {most} pixels, found {error}") from None
    return content


def _draw(site: Site, request: SheetRequest) -> TurnReply:
    data = site.data_of(request.spec.data, request.clients[0])
    samples = data.test[request.clients[0]]
    load = load_personal if request.personal else load_detector
    detector, downloaded = load(site, request.spec, request.model, len(data.classes), request.own)
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
    sheet = detection_sheet(drawn, data.classes, regions=[sample.regions for sample in chosen])
    # Pillow's default, level 6, takes three times as long for a file that is a tenth smaller.
    sheet.save(buffer, format="PNG", compress_level=3)
    stored = site.weights.put(site.layout(request.federation).sheet, buffer.getvalue())
    return TurnReply(
        images=len(chosen),
        detections=WeightRef.of(stored),
        downloaded=downloaded,
        uploaded=stored.bytes,
    )
