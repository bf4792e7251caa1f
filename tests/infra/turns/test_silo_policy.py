"""A silo's policy allows exactly the requests that its turns send to a store, as recorded at their client."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import load_file

from infra.settings import Settings
from infra.settings_groups import S3Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from infra.store.weights import WeightStore
from infra.turns.mailbox import Mailbox, open_session, require_session
from infra.turns.silo_policy import silo_policy
from tasks.aggregate import initial_weights
from tasks.client_eval import client_eval
from tasks.client_resources import client_resources
from tasks.client_update import client_update
from tasks.client_wake_up import client_wake_up
from tasks.draw_sheet import draw_sheet
from tasks.handles import Handles
from tasks.site import Site
from tasks.spec.data import SyntheticStreet
from tasks.spec.detector import YoloV3TinySpec
from tasks.spec.federation import FederationSpec
from tasks.spec.participation import Participation
from tasks.spec.strategies import ScaffoldSpec
from tasks.spec.training import EvaluationSpec, Sgd, TrainingSpec
from tasks.spec.turns import EvaluationRequest, ResourceRequest, SheetRequest, UpdateRequest, WakeUpRequest
from tests.tasks.phase_handles import make_handles, make_plan, put_state

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = FederationSpec(
    data=SyntheticStreet(train_images=40, test_images=5, width=64, height=64),
    detector=YoloV3TinySpec(width=64, height=64),
    training=TrainingSpec(batch_size=4),
    evaluation=EvaluationSpec(batch_size=2),
)
PLAIN_SGD = TrainingSpec(batch_size=4, optimizer=Sgd(lr=1e-3, momentum=0.0), clip_norm=None)
NAME, POOL, SESSION, OWN = "silo-policy", "silo-b", "a-session", ("4", "5")
# The name in IAM of the permission that each request needs.
PERMISSION = {
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "PutObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
}


class RecordingStore(ObjectStore):
    """A store that records each request as (operation, key)."""

    def __init__(self, store: S3Settings) -> None:
        super().__init__(store)
        self.requests: list[tuple[str, str]] = []

    def _new_client(self) -> S3Client:
        client = super()._new_client()

        def record(params: dict[str, Any], model: Any, **rest: Any) -> None:
            self.requests.append((model.name, params.get("Key", "")))

        client.meta.events.register("before-parameter-build.s3", record)
        return client


def allows(policy: dict[str, Any], action: str, bucket: str, key: str) -> bool:
    """Return whether a statement has the action and a pattern of the resource; ``*`` matches any text, as in IAM."""
    resource = f"arn:aws:s3:::{bucket}/{key}"
    return any(
        action in statement["Action"]
        and any(fnmatch.fnmatchcase(resource, pattern) for pattern in statement["Resource"])
        for statement in policy["Statement"]
    )


@pytest.fixture(scope="module")
def settings(s3_settings: S3Settings) -> S3Settings:
    return s3_settings.model_copy(update={"prefix": "phases"})


@pytest.fixture(scope="module")
def handles(object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Handles:
    return make_handles(object_store, tmp_path_factory.mktemp("coordinator"), NAME)[0]


@pytest.fixture(scope="module")
def requests(
    handles: Handles, object_store: ObjectStore, settings: S3Settings, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[str, str]]:
    """Return all requests of a resident with clients 4 and 5, from first to last. Its machine's cache is empty."""
    home, store = tmp_path_factory.mktemp("silo"), RecordingStore(settings)
    site = Site(Settings(home=home, s3=settings))
    site.objects, site.weights = store, WeightStore(store, home / "cache" / "weights", 100)
    layout = FederationLayout("phases", NAME)
    model = initial_weights(handles, SPEC, 7)
    plan = make_plan(handles, SPEC, model, ("1", *OWN))
    open_session(object_store, layout, POOL, SESSION, "1")
    Mailbox(object_store, layout, POOL, SESSION, 1).put_ask(1, {"phase": "leave"})

    require_session(store, layout, POOL, SESSION, "1")
    mailbox = Mailbox(store, layout, POOL, SESSION, 1)
    assert mailbox.get_ask(1) == {"phase": "leave"}
    assert mailbox.get_ask(2) is None
    mailbox.put_answer(1, {"reply": "here"})

    common: dict[str, Any] = {"federation": NAME, "spec": SPEC, "clients": OWN}
    ready = client_wake_up(site, WakeUpRequest(**common)).ready
    assert [info.client for info in ready] == list(OWN)
    client_resources(site, ResourceRequest(**common))
    of_plan = {
        "round": plan.round, "spec_digest": plan.spec_digest, "model": model, "learning_rate": 1e-3,
        "seeds": {client: plan.seeds[client] for client in OWN},
    }  # fmt: skip
    summed = SPEC.model_copy(update={"participation": Participation(partial_sums=True)})
    for spec in (SPEC, summed):
        reply = client_update(site, UpdateRequest(**{**common, "spec": spec}, **of_plan))
        assert ([update.client for update in reply.updates], reply.failures) == (list(OWN), ())
    # Two turns of a method with states: nothing to start from, and a state of its own and a shared one.
    scaffold = SPEC.model_copy(update={"strategy": ScaffoldSpec(), "training": PLAIN_SGD})
    first = client_update(site, UpdateRequest(**{**common, "spec": scaffold}, **of_plan, states={}))
    states = {update.client: update.state for update in first.updates}
    assert states["4"] is not None
    variate = load_file(site.weights.path(states["4"].sha256))
    shared = put_state(handles, layout.shared_state(plan.round), {name: variate[name] / 2 for name in variate})
    site.weights = WeightStore(store, home / "cache" / "empty", 100)
    second = {**of_plan, "round": plan.round + 1, "states": states, "shared": shared}
    reply = client_update(site, UpdateRequest(**{**common, "spec": scaffold}, **second))
    assert ([update.state is None for update in reply.updates], reply.failures) == ([False, False], ())
    evaluation = EvaluationRequest(
        **common, round=0, model=model, test_digest=ready[0].test_digest, test_size=5, part=0, parts=2
    )
    assert client_eval(site, evaluation).failures == ()
    tuned = client_update(site, UpdateRequest(**common, **of_plan, tuning=True)).updates
    assert [update.client for update in tuned] == list(OWN)
    site.weights = WeightStore(store, home / "another", 100)  # the silo's next resident may be on another machine
    for update in tuned:
        own = evaluation.model_copy(
            update={"clients": (update.client,), "model": update.weights, "personal": True, "parts": 1}
        )
        assert client_eval(site, own).failures == ()
    assert draw_sheet(site, SheetRequest(**common, model=model, images=2)).images == 2
    return store.requests


def test_every_request_of_a_silo_is_allowed(requests: list[tuple[str, str]], settings: S3Settings) -> None:
    policy = silo_policy(settings.bucket, "phases", POOL, OWN)
    assert {operation for operation, _ in requests} <= PERMISSION.keys()
    refused = [
        (operation, key)
        for operation, key in requests
        if not allows(policy, PERMISSION[operation], settings.bucket, key)
    ]
    assert refused == []


def test_nothing_else_is_allowed(requests: list[tuple[str, str]], settings: S3Settings) -> None:
    policy = silo_policy(settings.bucket, "phases", POOL, OWN)
    patterns = {
        (action, pattern)
        for statement in policy["Statement"]
        for action in statement["Action"]
        for pattern in statement["Resource"]
        if action != "s3:AbortMultipartUpload"  # needed only when an upload fails
    }
    done = {(PERMISSION[operation], f"arn:aws:s3:::{settings.bucket}/{key}") for operation, key in requests}
    idle = {
        (action, pattern)
        for action, pattern in patterns
        if not any(action == other and fnmatch.fnmatchcase(resource, pattern) for other, resource in done)
    }
    # A partial sum is stored under the first client of a turn only.
    rounds = f"arn:aws:s3:::{settings.bucket}/phases/*/rounds/*/"
    assert idle == {
        ("s3:PutObject", f"{rounds}updates/_sum-5.safetensors"),
        # These are for rounds from 10,000 on.
        ("s3:GetObject", rounds.replace("rounds/*", "rounds/?????") + "shared.safetensors"),
        ("s3:GetObject", rounds.replace("rounds/*", "rounds/??????") + "shared.safetensors"),
    }


def test_objects_of_others_are_refused() -> None:
    policy, layout = silo_policy("fedbench", "federations", POOL, OWN), FederationLayout("federations", "street")
    written = [
        layout.spec, layout.best, layout.lease, layout.store, layout.plan(3), layout.marker(3),
        layout.global_weights(3), layout.update_weights(3, "1"), layout.update_record(3, "1"),
        layout.server_state(3), layout.shared_state(3), layout.client_state(3, "1"),
        layout.fine_tuned_weights(3, "1"), layout.fine_tuned_update(3, "1"), layout.fine_tuned_record(3),
        layout.put_aside(layout.client_state(3, "4"), 1), layout.partial_sum(3, "1"),
        layout.evaluation_part(3, "1", "p"), f"{layout.turns}silo-a/s/1/0001-answer.json",
        f"{layout.turns}{POOL}/s/1/0001-ask.json", f"{layout.turns}{POOL}/s/session.json",
        *(layout.put_aside(key, 1) for key in (layout.update_weights(3, "4"), layout.update_record(3, "4"))),
    ]  # fmt: skip
    assert [key for key in written if allows(policy, "s3:PutObject", "fedbench", key)] == []
    read = [
        layout.spec, layout.plan(3), layout.update_weights(3, "1"), layout.update_weights(3, "4"), layout.marker(3),
        layout.fine_tuned_weights(3, "1"), layout.fine_tuned_update(3, "4"), layout.fine_tuned_record(3),
        f"{layout.turns}silo-a/s/1/0001-ask.json", layout.put_aside(layout.global_weights(3), 1),
        layout.server_state(3), layout.client_state(3, "1"), layout.client_state(3, "shared"),
        layout.client_state(100_000, "shared"), layout.put_aside(layout.client_state(3, "4"), 1),
    ]  # fmt: skip
    assert [key for key in read if allows(policy, "s3:GetObject", "fedbench", key)] == []
    for number in (3, 10_000, 100_000):
        assert allows(policy, "s3:GetObject", "fedbench", layout.shared_state(number))
        for action in ("s3:GetObject", "s3:PutObject"):
            assert allows(policy, action, "fedbench", layout.client_state(number, "4"))
    own = layout.update_weights(3, "4")
    assert allows(policy, "s3:PutObject", "fedbench", own)
    assert not allows(policy, "s3:PutObject", "another", own)
    assert not allows(policy, "s3:DeleteObject", "fedbench", own)
    only = silo_policy("fedbench", "federations", POOL, OWN, federation="street")
    assert allows(only, "s3:PutObject", "fedbench", own)
    assert not allows(only, "s3:PutObject", "fedbench", FederationLayout("federations", "b").update_weights(3, "4"))
