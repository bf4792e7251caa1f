"""Phase 7, ``client_eval``: a client's part of ``stop_and_eval``. It runs in a slot, which does not import Prefect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from safetensors.numpy import save
from torch import Tensor

from tasks.data.loading import EvaluationLoader
from tasks.data.samples import ImageSample, samples_digest
from tasks.data.truth import truth_of
from tasks.detectors.base import Detector
from tasks.detectors.state import load_state, tensor_faults
from tasks.errors import ClientError, DataError, ModelDiverged
from tasks.evaluation_parts import part_key
from tasks.metrics.detections import pack
from tasks.metrics.truth import Truth, pack_truth
from tasks.site import Site
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import IMAGES_HAVE, ClientFailure, WeightRef
from tasks.spec.turns import EvaluationRequest, TurnReply
from tasks.strategies.registry import build_strategy
from tasks.strategies.tensor_file import TensorFile
from tasks.training.evaluation import PartResult, evaluate
from tasks.training.turn import give_back


def client_eval(site: Site, request: EvaluationRequest) -> TurnReply:
    """Evaluate the batches ``part``, ``part + parts``, … of the images that the request names. Runs in a slot.

    The losses are in the reply; the detections and true objects are stored.
    """
    try:
        data = site.data_of(request.spec.data, request.clients[0])
        samples = data.scored(request.clients[0], request.on)
        digest = samples_digest(samples)
        if digest != request.test_digest:
            raise ClientError(
                f"client {request.clients[0]}: its {IMAGES_HAVE[request.on]} changed since wake_up: "
                f"expected digest {request.test_digest}, found {digest}"
            )
        load = load_personal if request.personal else load_detector
        detector, downloaded = load(site, request.spec, request.model, len(data.classes), request.own)
        result, truth = _evaluate_part(site, request, detector, samples, len(data.classes))
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
    stored = site.weights.put(part_key(site.layout(request.federation), request), save(tensors))
    return TurnReply(
        images=result.images,
        batch_losses=tuple(result.batch_losses),
        detections=WeightRef.of(stored),
        downloaded=downloaded,
        uploaded=stored.bytes,
    )


def load_detector(
    site: Site, spec: FederationSpec, model: WeightRef, classes: int, own: WeightRef | None = None
) -> tuple[Detector, int]:
    """Return the site's detector with the weights of ``model``, and the bytes fetched from the store for it."""
    fetched = site.weights.get(model.key, model.sha256, model.bytes)
    detector = site.detector(spec, classes)
    load_state(detector, fetched.path)
    return detector, fetched.downloaded


def load_personal(
    site: Site, spec: FederationSpec, model: WeightRef, classes: int, own: WeightRef | None
) -> tuple[Detector, int]:
    """Return the site's detector with a client's own model, and the bytes fetched for it.

    own: the client's state; None: it has none yet.

    Raises:
        ClientError: the state does not fit the detector.
    """
    detector, downloaded = load_detector(site, spec, model, classes)
    if own is None:
        return detector, downloaded
    state = site.weights.get(own.key, own.sha256, own.bytes)
    fetched = site.weights.get(model.key, model.sha256, model.bytes)
    load_personal_state(detector, spec, TensorFile(fetched.path), TensorFile(state.path), source=own.key)
    return detector, downloaded + state.downloaded


def load_personal_state(
    detector: Detector, spec: FederationSpec, model: Mapping[str, Tensor], own: Mapping[str, Tensor], *, source: str
) -> None:
    """Load a client's own model into ``detector``. model: the global one. own: the client's state, from ``source``.

    Raises:
        ClientError: both together are no state of the detector.
    """
    weights = build_strategy(spec).personal_model(model, own)
    fault = next(tensor_faults(detector.state_dict(), weights), None)
    if fault is not None:
        raise ClientError(f"{source}: tensor {fault}")
    detector.load_state_dict(weights)


def evaluation_batches(site: Site, spec: FederationSpec, samples: Sequence[ImageSample]) -> EvaluationLoader:
    """Return the batches of ``samples`` for an evaluation by ``spec``."""
    return EvaluationLoader(
        samples,
        width=spec.detector.width,
        height=spec.detector.height,
        batch_size=spec.evaluation.batch_on(spec.training.device),
        cache=site.images,
        on_device=site.images_on_device(spec),
        threads=max(spec.training.loader_workers, 1),
    )


def _evaluate_part(
    site: Site, request: EvaluationRequest, detector: Detector, samples: Sequence[ImageSample], classes: int
) -> tuple[PartResult, dict[int, Truth]]:
    loader = evaluation_batches(site, request.spec, samples)
    batches = (loader[number] for number in range(request.part, len(loader), request.parts))
    device = request.spec.training.device
    result = evaluate(
        detector,
        batches,
        samples,
        request.spec.evaluation,
        device=device,
        unlabelled_score=request.spec.data.unlabelled_score,
    )
    give_back(device)
    chosen = {index: samples[index] for index in result.detections}
    return result, {index: truth_of(sample, classes) for index, sample in chosen.items()}
