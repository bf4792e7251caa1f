"""Check that a turn's reply answers its request, before anything in the reply is used.

A reply may hold anything, because a silo's worker is not under the coordinator's control. A fault in one client's
answer drops that client, with the reason. A reply that as a whole does not answer its request raises
:class:`~infra.errors.BadReply`, and the turn runs again (:mod:`tasks.hand_out`). The request limits the answer's size,
which is checked before the answer is read.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from infra.errors import BadReply
from tasks.plain_text import REASON_LIMIT, plain
from tasks.spec.messages import explain
from tasks.spec.plans import ClientFailure, ClientInfo, ResourceAnswer, RoundPlan, UpdateRecord
from tasks.spec.records import EvaluationRecord
from tasks.spec.turns import AnyRequest, EvaluationRequest, SheetRequest, TurnReply, UpdateRequest, WakeUpRequest
from tasks.strategies.registry import strategy_class

log = logging.getLogger(__name__)

Model = TypeVar("Model", bound=BaseModel)

# The field of a reply that holds a phase's answers, one for each client, and their type.
ANSWERS: dict[str, tuple[str, type[BaseModel]]] = {
    "wake_up": ("ready", ClientInfo),
    "check_client_resource": ("answers", ResourceAnswer),
    "request_update": ("updates", UpdateRecord),
}
# Most test images that a client may claim; the number decides how much an evaluation costs.
MOST_TEST_IMAGES = 1_000_000
# Most bytes of an answer: for the whole, which has a traceback if the turn failed; for each client, which may have a
# count for each class; for a failure, a batch's loss, and a client's name in the list of those in a partial sum.
_ANY_ANSWER = 1 << 20
_OF_A_CLIENT = {"wake_up": 48 << 10, "check_client_resource": 4 << 10, "request_update": 16 << 10}
_OF_A_FAILURE = 4 << 10
_OF_A_LOSS = 40
_OF_A_NAME = 96
_LARGEST_ANSWER = 10 << 20  # JSON takes up to 24 times its bytes in memory
_MOST_VALUES = 10_000  # in a client's answer: its classes, or the clients of its partial sum
# The fields of a reply that belong to the whole turn and not to one client.
_OF_WORK = ("images", "batch_losses", "detections", "downloaded", "uploaded")
# Bytes by which an update may be larger than the global weights: their tensors are equal, but headers may differ.
HEADER_SLACK = 1 << 16
# The largest loss of an image; losses are computed in float32.
_LARGEST_LOSS = 3.5e38


def answer_limit(request: AnyRequest) -> int:
    """Return the most bytes that the answer to ``request`` may have in the mailbox."""
    clients = len(request.clients)
    limit = _ANY_ANSWER + clients * _OF_A_CLIENT.get(request.phase, _OF_A_FAILURE)
    if isinstance(request, EvaluationRequest):
        limit += _OF_A_LOSS * len(batches_of(request))
    limit = min(limit, _LARGEST_ANSWER)
    if isinstance(request, UpdateRequest) and request.spec.participation.partial_sums:
        limit += clients * clients * _OF_A_NAME  # each client's record names all clients
    return limit


def record_limit(plan: RoundPlan) -> int:
    """Return the most bytes that a client's record of an update may have in the store."""
    return _OF_A_CLIENT["request_update"] + (len(plan.cohort) * _OF_A_NAME if plan.partial_sums else 0)


def batch_size_of(request: EvaluationRequest) -> int:
    """Return the number of images of a batch of the request, but for the test set's last one."""
    return request.spec.evaluation.batch_on(request.spec.training.device)


def batches_of(request: EvaluationRequest) -> range:
    """Return the numbers of the batches that make up the request's part of the test set."""
    return range(request.part, -(-request.test_size // batch_size_of(request)), request.parts)


def images_of(request: EvaluationRequest) -> int:
    """Return the number of images in the batches of the request's part. The test set's last batch may be smaller."""
    batches, size = batches_of(request), batch_size_of(request)
    return (len(batches) - 1) * size + min(size, request.test_size - batches[-1] * size) if batches else 0


def failure_of(phase: str, client: str, reason: str, kind: str = "client-error") -> ClientFailure:
    """Return the failure with which ``client`` is dropped. ``reason`` may hold the client's own text and is escaped."""
    of_record = "stop_and_eval" if phase == "sheet" else phase
    return ClientFailure.model_validate(
        {"client": client, "phase": of_record, "kind": kind, "reason": plain(reason, REASON_LIMIT)}
    )


def read_reply(request: AnyRequest, document: Any) -> TurnReply:
    """Return the JSON ``document`` as a reply. A malformed answer becomes its client's failure.

    Raises:
        BadReply: the document is not a reply; the message names the field and what was expected there.
    """
    if not isinstance(document, dict):
        raise BadReply(f"reply: expected a mapping of fields, found {type(document).__name__}")
    unknown = next((key for key in document if key not in TurnReply.model_fields), None)
    if unknown is not None:
        raise BadReply(f"reply: {plain(unknown)}: no such field")
    _check_losses(request, document.get("batch_losses", []))
    name, model = ANSWERS.get(request.phase, ("", ClientInfo))
    answers, wrong = _entries(request, document, name, model) if name else ([], [])
    failures, also_wrong = _entries(request, document, "failures", ClientFailure)
    rest = {key: document[key] for key in _OF_WORK if key in document}
    reply = _validated(TurnReply, rest, "reply")
    return reply.model_copy(
        update={**({name: tuple(answers)} if name else {}), "failures": (*failures, *wrong, *also_wrong)}
    )


def _check_losses(request: AnyRequest, losses: Any) -> None:
    most = len(batches_of(request)) if isinstance(request, EvaluationRequest) else 0
    if not isinstance(losses, list) or len(losses) > most or any(type(loss) not in (int, float) for loss in losses):
        raise BadReply(f"reply: batch_losses: expected a list of at most {most} numbers")


def _entries(
    request: AnyRequest, document: dict[str, Any], name: str, model: type[Model]
) -> tuple[list[Model], list[ClientFailure]]:
    """Return the entries of the list ``name``, and a failure for each client whose entry is malformed.

    Raises:
        BadReply: the field is not a list or has too many entries, or a malformed entry names no client of the turn.
    """
    entries, most = document.get(name, []), 2 * len(request.clients) + 8
    if not isinstance(entries, list) or len(entries) > most:
        found = f"a list of {len(entries)}" if isinstance(entries, list) else type(entries).__name__
        raise BadReply(f"reply: {name}: expected a list of at most {most}, found {found}")
    good, wrong = [], []
    for entry in entries:
        try:
            good.append(_validated(model, entry, f"reply: {name}"))
        except BadReply as error:
            client = entry.get("client") if isinstance(entry, dict) else None
            if not isinstance(client, str) or client not in request.clients:
                raise
            wrong.append(failure_of(request.phase, client, str(error)))
    return good, wrong


def _validated(model: type[Model], document: Any, source: str) -> Model:
    """
    Raises:
        BadReply: ``document`` is not a ``model``; the message names ``source``, the field and what was expected there.
    """
    # pydantic's report of a mistake takes 100 times the bytes of the wrong value, so values are counted first.
    if _values(document) > _MOST_VALUES:
        raise BadReply(f"{source}: expected at most {_MOST_VALUES} values in {model.__name__}, found more")
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise BadReply(plain(explain(error, model, source), REASON_LIMIT)) from None


def _values(document: Any) -> int:
    """Return the number of values in a JSON document, except losses. Counting stops a little over the limit."""
    count, left = 0, [document]
    while left and count <= _MOST_VALUES:
        item = left.pop()
        if isinstance(item, dict | list):
            children = [item[name] for name in item if name != "batch_losses"] if isinstance(item, dict) else item
            count += len(children)
            left += [child for child in children if isinstance(child, dict | list)]
    return count


def checked(request: AnyRequest, reply: Any) -> TurnReply:
    """Return ``reply`` with exactly one answer or one failure for each client of ``request``, and for no other client.

    A client's failure overrides its answer, and only its first answer counts. A client without either gets a failure.
    The reply to an evaluation or a sheet has a failure for every client of the turn, or for none.

    Raises:
        BadReply: the reply as a whole does not answer ``request``; the message says what was expected.
    """
    if not isinstance(reply, TurnReply):
        raise BadReply(f"expected a reply, found {type(reply).__name__}")
    asked = set(request.clients)
    failed: dict[str, ClientFailure] = {}
    strangers = {item.client for item in reply.failures} - asked
    for item in reply.failures:
        if item.client in asked:
            failed.setdefault(item.client, failure_of(request.phase, item.client, item.reason, _kind(request, item)))
    if isinstance(request, EvaluationRequest | SheetRequest):
        if failed:
            first = next(iter(failed.values()))
            every = (failed.get(client) or first.model_copy(update={"client": client}) for client in request.clients)
            return TurnReply.model_validate({"failures": tuple(every), **_moved(request, reply)})
        _check_work(request, reply)
        return TurnReply.model_validate({name: getattr(reply, name) for name in _OF_WORK} | _moved(request, reply))
    name, _ = ANSWERS[request.phase]
    answers: dict[str, Any] = {}
    for answer in getattr(reply, name):
        if answer.client not in asked:
            strangers.add(answer.client)
        elif answer.client not in failed:
            answers.setdefault(answer.client, answer)
    for client, answer in list(answers.items()):
        fault = _fault(request, answer)
        if fault is not None:
            del answers[client]
            failed[client] = failure_of(request.phase, client, fault)
    for client in request.clients:
        if client not in answers and client not in failed:
            failed[client] = failure_of(
                request.phase, client, "its turn's reply has neither an answer nor a failure for it"
            )
    if strangers:
        names = ", ".join(sorted(strangers)[:10])
        log.warning(
            "%s of %s: ignored answers for %s, who were not asked", request.phase, ", ".join(request.clients), names
        )
    return TurnReply.model_validate(
        {
            name: tuple(answers[client] for client in request.clients if client in answers),
            "failures": tuple(failed[client] for client in request.clients if client in failed),
            **_moved(request, reply),
        }
    )


def _moved(request: AnyRequest, reply: TurnReply) -> dict[str, int]:
    """Return the bytes that the turn reports to have moved, cut to the most that answering ``request`` can move.

    Records hold sums of them and have bounds: one silo's figures must not take a round's sum beyond its bound.
    """
    up = reply.detections.bytes if reply.detections is not None else 0
    down = 0
    if isinstance(request, EvaluationRequest | SheetRequest):
        down = len(request.clients) * request.model.bytes
        if request.own is not None:
            down += request.own.bytes
    elif isinstance(request, UpdateRequest):
        down = sum(request.fetched_bytes(client) for client in request.clients)
        # A client stores its weights and, if the method keeps one, its state, which is no larger than one model. A
        # partial sum may hold several means, each as large as a model.
        objects = len(strategy_class(request.spec).means) if request.spec.participation.partial_sums else 1
        objects += request.states is not None
        up = len(request.clients) * objects * (request.model.bytes + HEADER_SLACK)
    return {"downloaded": min(reply.downloaded, down), "uploaded": min(reply.uploaded, up)}


def _kind(request: AnyRequest, failure: ClientFailure) -> str:
    """Return the kind of failure that is recorded.

    A turn may report only that a client failed, or, in an evaluation, that the model has no finite loss.
    """
    of_model = failure.kind == "model-diverged" and isinstance(request, EvaluationRequest)
    return failure.kind if of_model else "client-error"


def _fault(request: AnyRequest, answer: Any) -> str | None:
    if not isinstance(request, WakeUpRequest):
        return None
    for name in ("test_size", "holdout_size"):
        size = getattr(answer, name)
        if size > MOST_TEST_IMAGES:
            return f"{name}: expected at most {MOST_TEST_IMAGES}, found {size}"
    if answer.holdout_size and request.spec.data.holdout is None:
        return f"holdout_size: expected 0, because data.holdout keeps no images out, found {answer.holdout_size}"
    if (answer.holdout_digest is None) != (answer.holdout_size == 0):
        return f"holdout_digest: expected one exactly if holdout_size is not 0, found {answer.holdout_size} images"
    return None


def _check_work(request: EvaluationRequest | SheetRequest, reply: TurnReply) -> None:
    """
    Raises:
        BadReply: the images, losses or stored object of an evaluation's part or a sheet do not fit ``request``.
    """
    if reply.detections is None:
        raise BadReply("reply: detections: expected an object, found none, and no failure")
    if isinstance(request, SheetRequest):
        return
    images, batches = images_of(request), len(batches_of(request))
    if reply.images != images:
        raise BadReply(f"reply: images: expected {images}, those of the part, found {reply.images}")
    if len(reply.batch_losses) != batches:
        raise BadReply(f"reply: batch_losses: expected {batches}, one a batch, found {len(reply.batch_losses)}")
    most = _LARGEST_LOSS * batch_size_of(request)
    for loss in reply.batch_losses:
        if not math.isfinite(loss) or abs(loss) > most:
            raise BadReply(f"reply: batch_losses: expected finite numbers up to {most:.3g}, found {loss:g}")
    total = math.fsum(reply.batch_losses)
    if abs(total) > _LARGEST_LOSS * images:  # the last batch may be smaller than the others
        mean = total / images
        raise BadReply(f"reply: batch_losses: expected at most {_LARGEST_LOSS:.3g} an image, found {mean:.3g}")


def not_counted(
    dropped: Sequence[ClientFailure],
    updates: Sequence[UpdateRecord],
    evaluations: Sequence[EvaluationRecord],
    *,
    of_each: int = 1,
) -> tuple[ClientFailure, ...]:
    """Return the failures in ``dropped`` of clients without a result, so that a record has a result or a failure.

    Up to ``aggregate`` a client's result is its update; in ``stop_and_eval`` it is the evaluation of its test set, of
    its held-out images, or of both (``of_each`` 2).
    """
    updated = {update.client for update in updates}
    times = Counter(client for evaluation in evaluations for client in evaluation.clients)
    scored = {client for client, count in times.items() if count >= of_each}
    return tuple(item for item in dropped if item.client not in (scored if item.phase == "stop_and_eval" else updated))
