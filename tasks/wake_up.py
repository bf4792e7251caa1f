"""Phase 1, ``wake_up``: every client loads and validates its data, and reports its size and classes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.errors import FedbenchError
from tasks.hand_out import hand_out, report_failures
from tasks.handles import Handles, current_handles
from tasks.held_out import has_enough_held_out, without_figure
from tasks.plain_text import plain
from tasks.replies import failure_of
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import ClientFailure, ClientInfo
from tasks.spec.shares import majority
from tasks.spec.turns import WakeUpRequest
from tasks.stop_and_eval import own_images_to_score

log = logging.getLogger(__name__)

# Wait before asking clients again that were not ready.
ASK_AGAIN_SECONDS = 5.0


@task(name="wake_up", task_run_name="wake_up", cache_policy=NO_CACHE, persist_result=False)
async def wake_up(
    federation: str, spec: FederationSpec, clients: Sequence[str], min_clients: int
) -> tuple[list[ClientInfo], list[ClientFailure]]:
    """Ask ``clients`` until ``min_clients`` are ready or the deadline is over.

    Returns the ready clients, in client order, and the failures of the others, with reasons.

    Raises:
        FedbenchError: too few clients are ready in time; the message names those that are missing, and why.
    """
    handles = current_handles()
    started = time.monotonic()
    handles.reporter.phase_started("wake_up", len(clients))
    ready: dict[str, ClientInfo] = {}
    while True:
        missing = tuple(client for client in clients if client not in ready)
        request = WakeUpRequest(federation=federation, spec=spec, clients=missing)
        left = spec.participation.wake_up_deadline - (time.monotonic() - started)
        replies = await hand_out(handles, request, deadline=max(left, 1.0))
        failures = [failure for reply in replies for failure in reply.failures]
        for info in (info for reply in replies for info in reply.ready):
            ready[info.client] = info
            handles.reporter.client_done("wake_up", info.client, _counts(info))
        left = spec.participation.wake_up_deadline - (time.monotonic() - started)
        if len(ready) >= min_clients or left <= ASK_AGAIN_SECONDS:
            break
        await asyncio.sleep(ASK_AGAIN_SECONDS)
    ready, others = _of_one_class_list(spec, ready)
    failures += others
    report_failures(handles, failures)
    if len(ready) < min_clients:
        reasons = "; ".join(f"client {failure.client}: {plain(failure.reason)}" for failure in failures)
        raise FedbenchError(
            f"wake_up: {len(ready)} of {len(clients)} clients are ready, "
            f"participation.min_clients is {min_clients}: {reasons}"
        )
    _require_held_out(handles, spec, ready.values())
    _require_own_images(spec, ready.values())
    _warn_of_majority(handles, spec, ready.values())
    handles.reporter.phase_finished("wake_up", time.monotonic() - started)
    return [ready[client] for client in clients if client in ready], failures


def _counts(info: ClientInfo) -> str:
    held = f"{info.holdout_size} held-out images, " if info.holdout_size else ""
    return f"{info.train_size} training images, {held}{info.test_size} test images"


def _warn_of_majority(handles: Handles, spec: FederationSpec, ready: Collection[ClientInfo]) -> None:
    for part in spec.evaluation.parts:
        scored = ready if part == "test" else [info for info in ready if has_enough_held_out(spec, info)]
        held = majority({info.client: info.scored_size(part) for info in scored})
        if held is not None:
            figures = "the test figures" if part == "test" else "the figures on held-out images"
            text = f"warning: client {held[0]} counts for {held[1]:.2%} of {figures}, by its own count of its images"
            log.warning("%s", text)
            handles.reporter.message(text)


def _require_own_images(spec: FederationSpec, ready: Collection[ClientInfo]) -> None:
    """
    Raises:
        FedbenchError: the method keeps models of the clients' own, and no client has an image to score its on.
    """
    if not spec.scores_own_models or own_images_to_score(spec, list(ready)):
        return
    what = f"strategy.kind {spec.strategy.kind}" if spec.strategy.personal else "fine_tuning"
    raise FedbenchError(
        f"wake_up: {what} scores each client's own model at the client, and no client has a test image; it runs with "
        "-s data.holdout.fraction=0.2 -s evaluation.on=holdout"
    )


def _require_held_out(handles: Handles, spec: FederationSpec, ready: Collection[ClientInfo]) -> None:
    """Name the clients that have too few held-out images, if the rounds score these.

    Raises:
        FedbenchError: no client has enough of them.
    """
    if "holdout" not in spec.evaluation.parts:
        return
    if any(has_enough_held_out(spec, info) for info in ready):
        note = without_figure(spec, ready)
        if note is not None:
            log.info("%s", note)
            handles.reporter.message(note)
        return
    assert spec.data.holdout is not None  # a rule of the specification
    most = max((info.holdout_size for info in ready), default=0)
    raise FedbenchError(
        f"wake_up: evaluation.on: {spec.evaluation.on} needs a client with at least {spec.data.holdout.least} held-out "
        f"images (data.holdout.least), the largest number is {most}; raise data.holdout.fraction "
        f"({spec.data.holdout.fraction:g}) or lower data.holdout.least"
    )


def _of_one_class_list(
    spec: FederationSpec, ready: dict[str, ClientInfo]
) -> tuple[dict[str, ClientInfo], list[ClientFailure]]:
    """Return the clients that have the federation's classes, and a failure for each of the others.

    The classes are those that the specification names, else those of more than half of the ready clients.

    Raises:
        FedbenchError: the specification names none, and no more than half of the clients have the same.
    """
    classes: dict[tuple[str, ...], list[str]] = {}
    for info in ready.values():
        classes.setdefault(spec.class_order(info.class_counts), []).append(info.client)
    if len(classes) < 2:
        return ready, []
    named = getattr(spec.data, "classes", None)
    expected = named or max(classes, key=lambda names: len(classes[names]))
    if not named and 2 * len(classes[expected]) <= len(ready):
        found = "; ".join(f"{', '.join(clients)}: {plain(', '.join(names))}" for names, clients in classes.items())
        raise FedbenchError(
            f"wake_up: expected the same classes at every client, found {found}; data.classes names them"
        )
    failures = [
        failure_of("wake_up", client, f"expected the classes {', '.join(expected)}; found {', '.join(names)}")
        for names, clients in classes.items()
        if names != expected
        for client in clients
    ]
    others = {item.client for item in failures}
    return {client: info for client, info in ready.items() if client not in others}, failures
