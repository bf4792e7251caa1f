"""Three silos, the second of them foreign: it may answer anything. The coordinator is real, the store in memory.

The coordinator uses the slots for residents (:class:`infra.turns.resident_slots.ResidentSlots`), but no resident is
started. When a resident is rung, the test writes its answer to the store. Below
:class:`~infra.store.objects.ObjectStore` there is an S3 client without a network: with a server, thousands of turns
would spend most of their time on requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from botocore.exceptions import ClientError
from PIL import Image
from safetensors.numpy import save

from flows.resident import REQUEST
from infra.settings_groups import PoolSettings, S3Settings
from infra.store.objects import ObjectStore
from infra.turns.mailbox import ANSWER
from infra.turns.resident_pool import Resident
from infra.turns.resident_slots import ResidentSlots
from tasks.evaluation_parts import part_key
from tasks.handles import Handles, set_handles
from tasks.metrics.detections import ImageDetections, pack
from tasks.metrics.truth import pack_truth
from tasks.replies import answer_limit, batches_of, images_of, read_reply
from tasks.spec.federation import FederationSpec
from tasks.spec.participation import Participation
from tasks.spec.plans import ClientInfo, Draw, RoundPlan, WeightRef
from tasks.spec.training import EvaluationSpec
from tasks.spec.turns import AnyRequest, EvaluationRequest, SheetRequest, UpdateRequest
from tests.records import client_info, round_plan
from tests.tasks.phase_handles import Notes, make_handles, make_update

CLIENTS, FOREIGN, CLASSES, TEST_SIZE = ("1", "2", "3"), "2", ("car", "van"), 11
SPEC = FederationSpec(
    participation=Participation(clients=CLIENTS, turn_retries=1), evaluation=EvaluationSpec(batch_size=2)
)
DIGEST = SPEC.digest
Content = bytes | int  # an object's content; a number stands for as many zeros, which take no memory


class Body:
    """The body of a response. ``read_bytes`` counts the bytes read from all bodies."""

    read_bytes = 0

    def __init__(self, content: Content) -> None:
        self.length = content if isinstance(content, int) else len(content)
        self._content, self._at = content, 0

    def close(self) -> None: ...

    def read(self, amount: int | None = None) -> bytes:
        end = self.length if amount is None else min(self._at + amount, self.length)
        start, self._at = self._at, end
        Body.read_bytes += end - start
        return bytes(end - start) if isinstance(self._content, int) else self._content[start:end]


class MemoryS3:
    """The operations of a boto3 client that a coordinator uses, over a dictionary."""

    def __init__(self) -> None:
        self.objects: dict[str, Content] = {}

    def _of(self, key: str) -> Content:
        if key not in self.objects:
            raise ClientError({"Error": {"Code": "NoSuchKey"}}, "GetObject")
        return self.objects[key]

    def get_object(self, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803
        body = Body(self._of(Key))
        return {"ContentLength": body.length, "Body": body}

    def head_object(self, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803
        return {"ContentLength": Body(self._of(Key)).length}

    def put_object(self, Bucket: str, Key: str, Body: bytes, ContentMD5: str) -> None:  # noqa: N803
        self.objects[Key] = Body

    def get_paginator(self, name: str) -> MemoryS3:
        return self

    def paginate(self, Bucket: str, Prefix: str) -> Iterator[dict[str, Any]]:  # noqa: N803
        keys = [key for key in self.objects if key.startswith(Prefix)]
        yield {"Contents": [{"Key": key, "Size": Body(self.objects[key]).length} for key in keys]}


class MemoryStore(ObjectStore):
    def __init__(self) -> None:
        super().__init__(S3Settings(endpoint="http://memory"), outage_seconds=0.0)
        self.client = MemoryS3()

    def _s3(self) -> Any:
        return self.client


class ForeignSlots(ResidentSlots):
    """Slots of residents that answer as soon as they are rung. ``answer`` returns the answer to a request."""

    answer: Callable[[AnyRequest], Content]

    async def _submit(self, resident: Resident) -> None:
        resident.welcome()

    async def _ring(self, resident: Resident, event: str) -> None:
        # Read this turn's request as a resident does: two turns of one silo may run at the same time.
        ask = await asyncio.to_thread(resident.mailbox.get_ask, resident.turns)
        assert ask is not None
        content = self.answer(REQUEST.validate_python(ask["request"]))
        self._objects.client.objects[f"{resident.mailbox.folder}{resident.turns:04d}{ANSWER}"] = content  # type: ignore[attr-defined]
        resident.changed.set()


@dataclass
class Silos:
    """The three silos with their store. ``tamper`` turns the foreign silo's honest answer into another one.

    ``tamper`` may also write to the store.
    """

    handles: Handles
    notes: Notes
    store: MemoryStore

    tamper: Callable[[AnyRequest, dict[str, Any]], Content] | None = None
    runner: asyncio.Runner = field(default_factory=asyncio.Runner)  # its threads are used again by the next phase

    def begin(self, tamper: Callable[[AnyRequest, dict[str, Any]], Content] | None = None) -> None:
        """Empty the store and replace the residents."""
        self.tamper = tamper
        self.store.client.objects.clear()
        self.notes.calls.clear()
        pools = PoolSettings(silos={client: f"silo-{client}" for client in CLIENTS}, residents=1)
        slots = ForeignSlots(
            self.store, self.handles.layout, pools, CLIENTS, job_variables={}, read_reply=read_reply,
            answer_limit=answer_limit, say=lambda text: None, code="1", deployment=lambda pool: pool,
        )  # fmt: skip

        def answer(request: AnyRequest) -> Content:
            document = {"version": 1, "reply": self.honest(request)}
            if tamper is not None and request.clients[0] == FOREIGN:
                return tamper(request, document)
            return json.dumps(document).encode()

        slots.answer = answer
        self.handles.slots = slots
        self.handles.weights.forget(path.stem for path in self.handles.weights.cache_dir.glob("??/*.safetensors"))
        self.model = self.put(self.handles.layout.global_weights(2), state(0))
        self.plan = self.new_plan()

    def put(self, key: str, content: bytes) -> WeightRef:
        """Store an object as a silo does, without the coordinator's cache. Return its reference."""
        self.store.client.objects[key] = content
        return WeightRef(key=key, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))

    def put_record(self, request: UpdateRequest) -> None:
        """Write the record of an update to the store, as its silo does."""
        (client,) = request.clients
        document = self.honest(request)["updates"][0]
        content: Content = json.dumps(document).encode()
        if self.tamper is not None and client == FOREIGN:
            content = self.tamper(request, document)
        self.store.client.objects[self.handles.layout.update_record(3, client)] = content

    def new_plan(self) -> RoundPlan:
        return round_plan(
            *CLIENTS,
            federation=self.handles.layout.federation,
            round=3,
            spec_digest=DIGEST,
            model=self.model,
            draws=(Draw(attempt=1, contacted=CLIENTS, answers=(), qualified=CLIENTS),),
            seeds={client: 100 + int(client) for client in CLIENTS},
            learning_rate=0.01,
        )

    def honest(self, request: AnyRequest) -> dict[str, Any]:
        """Return the document of an honest silo's reply. Put the reply's objects into the store."""
        (client,) = request.clients
        layout = self.handles.layout
        if request.phase == "wake_up":
            return {"ready": [info(client).model_dump(mode="json")]}
        if request.phase == "check_client_resource":
            return {"answers": [{"client": client, "load": 0.1, "free_memory": 10}]}
        if request.phase == "request_update":
            weights = self.put(layout.update_weights(3, client), state(int(client)))
            record = make_update(self.handles, self.plan, client, weights).model_dump(mode="json")
            return {"updates": [record], "failures": [], "downloaded": 5, "uploaded": 5}
        if isinstance(request, EvaluationRequest):
            ref = self.put(part_key(layout, request), save(part_arrays(request)))
            losses = [float(number) for number in batches_of(request)]
            return {"images": images_of(request), "batch_losses": losses, "detections": ref.model_dump(mode="json")}
        assert isinstance(request, SheetRequest)
        ref = self.put(layout.sheet, sheet())
        return {"images": request.images, "detections": ref.model_dump(mode="json")}


def make_silos(folder: Path) -> Silos:
    store = MemoryStore()
    handles, notes = make_handles(store, folder, "foreign", slots=1)
    set_handles(handles)  # before the runner is created: it keeps the context of that moment
    return Silos(handles, notes, store)


def info(client: str) -> ClientInfo:
    return client_info(
        client, test_size=TEST_SIZE, test_digest="d" * 64, class_counts=dict.fromkeys(CLASSES, 5), host="here"
    )


def state(number: int) -> bytes:
    return save({"w": np.full((4, 50), number, np.float32), "n": np.array(number, np.int64)})


def part_arrays(request: EvaluationRequest) -> dict[str, np.ndarray]:
    size = request.spec.evaluation.batch_size
    images = [
        image for batch in batches_of(request) for image in range(batch * size, min((batch + 1) * size, TEST_SIZE))
    ]
    box = np.array([[1, 2, 30, 40]], np.float32)
    found = {image: ImageDetections(box, np.array([0.5], np.float32), np.array([image % 2])) for image in images}
    truth = {image: (box, np.array([image % 2]), None) for image in images}
    arrays = {f"detections/{name}": array for name, array in pack(found).items()}
    return arrays | {f"truth/{name}": array for name, array in pack_truth(truth).items()}


def sheet() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), (1, 2, 3)).save(buffer, format="PNG")
    return buffer.getvalue()


MEMORY_LIMIT = 300_000_000


@contextlib.contextmanager
def memory_watched() -> Iterator[None]:
    """Fail if this process ever has over ``MEMORY_LIMIT`` bytes more during the block than before it."""
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = _kilobytes("VmRSS")
    yield
    grown = (_kilobytes("VmHWM") - before) * 1024
    assert grown <= MEMORY_LIMIT, f"{grown / 1e6:.0f} MB more"


def _kilobytes(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])
