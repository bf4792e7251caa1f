"""Bad answers of the foreign silo, each with a name and the reason that is recorded for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from safetensors.numpy import save

from tasks.spec.turns import AnyRequest, EvaluationRequest
from tests.tasks.foreign_silos import FOREIGN, Content, Silos, part_arrays, state

Tamper = Callable[[Silos, AnyRequest, dict[str, Any]], Content]
PHASES = ("wake_up", "request_update", "stop_and_eval")


def raw(content: Content) -> Tamper:
    return lambda silos, request, document: content


def changed(change: Callable[[dict[str, Any]], Any]) -> Tamper:
    """Return a tamper that passes the reply's document to ``change``, which edits it or returns another one."""

    def tamper(silos: Silos, request: AnyRequest, document: dict[str, Any]) -> Content:
        other = change(document["reply"])
        return json.dumps({**document, "reply": document["reply"] if other is None else other}).encode()

    return tamper


def in_place(content: Content, **fields: Any) -> Tamper:
    """Return a tamper that stores ``content`` as the reply's object. The reply describes it, except for ``fields``."""

    def tamper(silos: Silos, request: AnyRequest, document: dict[str, Any]) -> Content:
        reply = document["reply"]
        holder = reply["updates"][0] if request.phase == "request_update" else reply
        name = "weights" if request.phase == "request_update" else "detections"
        if isinstance(content, bytes):
            holder[name] = silos.put(holder[name]["key"], content).model_dump(mode="json") | fields
        else:
            silos.store.client.objects[holder[name]["key"]] = content
            holder[name] |= {"bytes": content} | fields
        return json.dumps(document).encode()

    return tamper


def rearranged(**arrays: Callable[[np.ndarray], np.ndarray]) -> Tamper:
    """Return a tamper that changes some arrays of an evaluation's object; ``truth_boxes`` is ``truth/boxes``."""

    def tamper(silos: Silos, request: AnyRequest, document: dict[str, Any]) -> Content:
        assert isinstance(request, EvaluationRequest)
        found = part_arrays(request)
        for name, change in arrays.items():
            found[name.replace("_", "/")] = change(found[name.replace("_", "/")])
        return in_place(save(found))(silos, request, document)

    return tamper


def many_boxes(count: int, group: str) -> Tamper:
    """Return a tamper that puts ``count`` boxes into the part's first image and none into the others."""

    def first(array: np.ndarray) -> np.ndarray:
        return np.array([count] + [0] * (len(array) - 1))

    names = ["boxes", "labels", "scores" if group == "detections" else "difficult"]
    repeated = {f"{group}_{name}": lambda array: np.repeat(array[:1], count, 0) for name in names}
    return rearranged(**{f"{group}_counts": first}, **repeated)


def answer_with(**fields: Any) -> Tamper:
    return changed(lambda reply: reply.update(fields))


def with_info(**fields: Any) -> Tamper:
    return changed(lambda reply: reply["ready"][0].update(fields))


def with_array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Tamper:
    return rearranged(**{name: change})


NO_ANSWER = "its turn's reply has neither an answer nor a failure for it"
# The reason after it is that of the turn's last attempt.
BAD = "2 turns, none with a reply that can be used: "
FAILURE = {"client": FOREIGN, "phase": "wake_up", "kind": "deadline", "reason": "no"}
EVERY_PHASE: dict[str, tuple[Tamper, str]] = {
    "300 MB": (raw(300_000_000), r"resident 4 of pool silo-2: .*expected at most \d+ bytes in .*, found 300000000"),
    "deep": (raw(b"[" * 500_000), BAD + ".*inside each other"),
    "deep reply": (raw(b'{"version": 1, "reply": ' + b"[" * 500 + b"]" * 500 + b"}"), BAD + ".*inside each other"),
    "no JSON": (raw(b"\xff\xfe"), BAD + ".*expected JSON"),
    "null": (raw(b"null"), BAD + ".*found null"),
    "a list": (raw(b"[1]"), BAD + ".*expected an answer of version 1, found list"),
    "newer": (raw(b'{"version": 2, "reply": {}}'), BAD + ".*expected an answer of version 1, found version 2"),
    "empty": (raw(b'{"version": 1}'), BAD + ".*expected an answer with a reply"),
    "an error": (raw(b'{"version": 1, "error": "a mistake"}'), BAD + ".*a mistake"),
    "lost": (raw(b'{"version": 1, "lost": "disk full"}'), "lost 2 times with its slot or store: .*: disk full"),
    "given back": (
        raw(b'{"version": 1, "returned": "its time"}'),
        "lost 2 times with its slot or store: pool silo-2: given back 5 times: its time",
    ),
    "a number": (changed(lambda reply: 7), BAD + ".*expected a mapping of fields, found int"),
    "surrogates": (answer_with(failures=[{"client": "\ud800"}]), BAD + ".*surrogates not allowed"),
    "unknown field": (answer_with(extra=1), BAD + ".*extra: no such field"),
    "many entries": (
        answer_with(failures=[{}] * 50),
        BAD + ".*failures: expected a list of at most 10, found",
    ),
    "10**400": (raw(b'{"version": 1, "reply": {"downloaded": 1' + b"0" * 400 + b"}}"), BAD + ".*in 64 bits"),
    "its failure": (changed(lambda reply: {"failures": [FAILURE]}), "^no$"),
}
OF_WAKE_UP: dict[str, tuple[Tamper, str]] = {
    "nothing": (changed(lambda reply: {}), NO_ANSWER),
    "wrong types": (with_info(train_size=[]), "reply: ready: train_size: expected a whole number"),
    "10**8 images": (with_info(test_size=10**8), "test_size: expected at most 1000000, found 100000000"),
    "other classes": (with_info(class_counts={"x": 1}), "expected the classes car, van; found x"),
    "another's answer": (with_info(client="1", train_size=1), NO_ANSWER),
}
OF_UPDATE: dict[str, tuple[Tamper, str]] = {
    "nothing": (changed(lambda reply: {}), NO_ANSWER),
    "missing field": (changed(lambda reply: reply["updates"][0].__delitem__("seed")), "reply: updates: seed: missing"),
    "no safetensors": (in_place(b"weights"), "client 2: expected an update in safetensors format"),
    "large header": (in_place(b"\xff" * 900), "expected an update in safetensors format, found a header of 1844"),
    "zeros": (in_place(bytes(900)), "client 2: expected an update in safetensors format"),
    "400 MB": (in_place(400_000_000), r"weights: expected at most 66\d+ bytes, found 400000000"),
    "400 MB hidden": (in_place(400_000_000, bytes=900), "expected at most 900 bytes in bucket .*, found 400000000"),
    "sha256": (in_place(state(2), sha256="a" * 64), "expected sha256 aaaa"),
    "another's place": (
        in_place(state(2), key="foreign/rounds/0003/updates/1.safetensors"),
        "weights: expected p",
    ),
    "other tensors": (
        in_place(save({"w": np.ones(3, np.float32)})),
        "tensor n: expected int64 .., found no",
    ),
}
OF_EVALUATION: dict[str, tuple[Tamper, str]] = {
    "nothing": (changed(lambda reply: {}), BAD + "reply: detections: expected an object"),
    "10**8 images": (answer_with(images=10**8), BAD + "reply: images: expected 4, those of the part, found 100000000"),
    "few losses": (answer_with(batch_losses=[1.0]), BAD + "reply: batch_losses: expected 2, one a batch, found 1"),
    "no object": (answer_with(detections=None), BAD + "reply: detections: expected an object"),
    "sha256": (in_place(b"arrays", sha256="a" * 64), BAD + ".*expected sha256 aaaa"),
    "elsewhere": (in_place(b"arrays", key="foreign/spec.json"), BAD + "reply: detections: expected phases/"),
    "400 MB": (in_place(400_000_000), BAD + r".*expected at most \d{6} bytes, found 400000000"),
    "400 MB hidden": (in_place(400_000_000, bytes=900), BAD + ".*expected at most 900 bytes .*, found 400000000"),
    "no safetensors": (in_place(b"arrays"), BAD + ".*expected arrays in safetensors format"),
    "large header": (in_place(b"\xff" * 900), BAD + ".*a header of 1844.* bytes, expected at most 65536"),
    "other arrays": (in_place(state(2)), BAD + ".*expected the arrays detections/images"),
    "200,000 boxes": (many_boxes(200_000, "detections"), BAD + r".*expected at most \d{6} bytes, found 5\d{6}"),
    "201 boxes": (many_boxes(201, "detections"), BAD + ".*at most 200 boxes in an image, found 201"),
    "5,000 objects": (many_boxes(5_000, "truth"), BAD + ".*at most 1000 objects an image on average"),
    "labels": (with_array("detections_labels", lambda a: a + 7), BAD + ".*class indices from 0 to 1"),
    "true labels": (with_array("truth_labels", lambda a: a - 2), BAD + ".*class indices from 0 to 1"),
    "true NaN": (with_array("truth_boxes", lambda a: a * np.float32("nan")), BAD + ".*finite numbers"),
    "other images": (with_array("truth_images", lambda a: a + 1), BAD + ".*expected the 4 of the part"),
    "type": (with_array("detections_scores", lambda a: a.astype(np.float64)), BAD + ".*expected F32 of 1"),
    "scalar": (with_array("truth_boxes", lambda a: np.array(1, np.float32)), BAD + ".*expected F32 of 2 dimensions"),
    "flags": (with_array("truth_difficult", lambda a: np.full(len(a), 7, np.uint8).view(bool)), BAD + ".*another byte"),
    "overflow": (
        with_array("detections_counts", lambda a: np.array([2**62, 2**62, 2**62, 2**62 + 4])),
        BAD + ".*counts: expected 4 in all, the number of boxes",
    ),
}
CASES = [
    (phase, name, tamper, reason)
    for phase, of_phase in zip(PHASES, (OF_WAKE_UP, OF_UPDATE, OF_EVALUATION), strict=True)
    for name, (tamper, reason) in {**EVERY_PHASE, **of_phase}.items()
]
