"""A client's turns at a real site, with a small data set, a small detector and a real store: replies and objects."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from infra.settings import Settings
from infra.settings_groups import S3Settings
from infra.store.foreign_json import read_foreign
from infra.store.objects import ObjectStore
from infra.turns.mailbox import MAILBOX_VERSION, reply_in
from tasks.aggregate import initial_weights
from tasks.client_eval import client_eval
from tasks.client_update import client_update
from tasks.client_wake_up import client_wake_up
from tasks.data.export.coco import write_coco
from tasks.data.samples import ANY_CLASS, Regions, class_counts
from tasks.detectors.registry import build_detector
from tasks.draw_sheet import draw_sheet, read_sheet
from tasks.environment import this_environment
from tasks.evaluation_parts import read_part
from tasks.handles import Handles
from tasks.replies import answer_limit, checked, read_reply
from tasks.request_update import answers_plan, stored_updates
from tasks.site import Site
from tasks.spec.data import Coco, SyntheticStreet
from tasks.spec.detector import YoloV3TinySpec
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import RoundPlan, UpdateRecord, WeightRef
from tasks.spec.strategies import ScaffoldSpec
from tasks.spec.training import EvaluationSpec, Sgd, TrainingSpec
from tasks.spec.turns import AnyRequest, EvaluationRequest, SheetRequest, TurnReply, UpdateRequest, WakeUpRequest
from tasks.stop_and_eval import clients_by_test_set, score
from tests.present import present
from tests.tasks.drawn_data import drawn_data
from tests.tasks.phase_handles import make_handles, make_plan, put_state

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = FederationSpec(
    data=SyntheticStreet(train_images=40, test_images=5, width=64, height=64),
    detector=YoloV3TinySpec(width=64, height=64, assignment="side-ratio", box_loss="ciou"),
    training=TrainingSpec(batch_size=4),
    evaluation=EvaluationSpec(batch_size=2),
)
NAME = "client-turns"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("site")


@pytest.fixture(scope="module")
def site(home: Path, s3_settings: S3Settings) -> Site:
    return Site(Settings(home=home, s3=s3_settings.model_copy(update={"prefix": "phases"})))


@pytest.fixture(scope="module")
def handles(home: Path, object_store: ObjectStore) -> Handles:
    return make_handles(object_store, home, NAME)[0]


@pytest.fixture(scope="module")
def model(handles: Handles) -> WeightRef:
    return initial_weights(handles, SPEC, 7)


@pytest.fixture
def plan(handles: Handles, model: WeightRef) -> RoundPlan:
    return make_plan(handles, SPEC, model, ("1", "2", "3", "4", "5"))


def update_request(plan: RoundPlan, *clients: str) -> UpdateRequest:
    return UpdateRequest(
        federation=NAME, spec=SPEC, clients=clients, round=plan.round, spec_digest=plan.spec_digest, model=plan.model,
        seeds={client: plan.seeds[client] for client in clients}, learning_rate=1e-3,
    )  # fmt: skip


def wake(site: Site, *clients: str, spec: FederationSpec = SPEC) -> WakeUpRequest:
    return WakeUpRequest(federation=NAME, spec=spec, clients=clients)


def as_answered(request: AnyRequest, reply: TurnReply) -> TurnReply:
    """Return ``reply`` as the coordinator reads it from a resident's answer."""
    answer = json.dumps({"version": MAILBOX_VERSION, "reply": reply.model_dump(mode="json")}, indent=1)
    assert len(answer) < answer_limit(request)
    return checked(request, read_reply(request, reply_in(read_foreign(answer.encode()))))


def test_a_client_reports_its_images_or_why_it_is_not_ready(site: Site) -> None:
    reply = client_wake_up(site, wake(site, "1", "5", "9"))
    assert as_answered(wake(site, "1", "5", "9"), reply) == reply
    data = site.data(SPEC.data)
    assert [(info.client, info.train_size, info.test_size) for info in reply.ready] == [
        ("1", len(data.train["1"]), 5), ("5", len(data.train["5"]), 5),
    ]  # fmt: skip
    assert tuple(reply.ready[0].class_counts) == data.classes
    assert len(clients_by_test_set(reply.ready)) == 1  # one global test set, so one evaluation
    (failure,) = reply.failures
    assert (failure.client, failure.kind) == ("9", "client-error")
    assert failure.reason == "data set synthetic-street has no device 9; it has 1, 2, 3, 4, 5"


def test_devices_with_their_own_test_sets_are_evaluated_separately(site: Site) -> None:
    spec = SPEC.model_copy(update={"data": SPEC.data.model_copy(update={"test": "per-device"})})
    reply = client_wake_up(site, wake(site, "1", "2", "3", spec=spec))
    assert [[info.client for info in group] for group in clients_by_test_set(reply.ready).values()] == [
        ["1"], ["2"], ["3"],
    ]  # fmt: skip


def test_an_update_is_stored_as_recorded_and_repeats_bit_for_bit(site: Site, handles: Handles, plan: RoundPlan) -> None:
    reply = client_update(site, update_request(plan, "5", "3"))
    assert as_answered(update_request(plan, "5", "3"), reply) == reply
    assert reply.failures == ()
    assert [update.client for update in reply.updates] == ["5", "3"]
    assert stored_updates(handles, plan) == {update.client: update for update in reply.updates}
    for update in reply.updates:
        assert answers_plan(update, plan, handles.layout.update_weights(3, update.client)) is None
        assert update.train_size == len(site.data(SPEC.data).train[update.client])
        assert update.train_loss == pytest.approx(sum(update.loss_terms.values()))
        state = load_file(handles.weights.get(update.weights.key, update.weights.sha256, update.weights.bytes).path)
        raw = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        assert update.weights.bytes <= 1.01 * raw
        assert int(state["layers.0.norm.num_batches_tracked"]) == update.steps
    # Another turn with other clients before it gives the same bits: a client keeps no state.
    again = client_update(site, update_request(plan, "1", "3")).updates[1]
    assert again.weights.sha256 == reply.updates[1].weights.sha256
    other = client_update(site, update_request(plan.model_copy(update={"seeds": {"3": 1}}), "3")).updates[0]
    assert other.seed == 1


def test_a_turn_starts_from_the_states_that_its_request_names(site: Site, handles: Handles, plan: RoundPlan) -> None:
    """One step of SCAFFOLD: ``c - c_i`` moves every weight by the rate; client 4's state is another one."""
    training = TrainingSpec(batch_size=64, optimizer=Sgd(momentum=0.0, weight_decay=0.0), clip_norm=None)
    spec = SPEC.model_copy(update={"training": training, "strategy": ScaffoldSpec()})
    request = update_request(plan, "4", "5").model_copy(update={"spec": spec, "learning_rate": 0.1})
    trained = dict(build_detector(spec.detector, 7, seed=1).named_parameters())

    def stored(key: str, value: float) -> WeightRef:
        return put_state(handles, key, {name: torch.full(tensor.shape, value) for name, tensor in trained.items()})

    layout = handles.layout
    shared, states = stored(layout.shared_state(2), 0.5), {"5": stored(layout.client_state(2, "5"), 0.2)}
    states["4"] = stored(layout.client_state(1, "4"), 0.9)

    def turn(request: UpdateRequest) -> list[tuple[UpdateRecord, dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
        """Return each client's record, update and new state."""
        found = []
        for update in client_update(site, request).updates:
            assert update.steps == 1
            assert update.state is not None
            refs = (update.weights, update.state)
            files = [load_file(handles.weights.get(ref.key, ref.sha256, ref.bytes).path) for ref in refs]
            found.append((update, files[0], files[1]))
        return found

    before = turn(request)
    after = turn(request.model_copy(update={"shared": shared, "states": states}))
    for (_, x, gradient), (update, y, variate), own in zip(before, after, (0.9, 0.2), strict=True):
        assert update.started_from == (shared.sha256, states[update.client].sha256)
        for name in trained:
            torch.testing.assert_close(y[name], x[name] - 0.1 * (0.5 - own), rtol=1e-5, atol=1e-5)
            # The mean of the corrected gradients, less c - c_i: the plain gradient at x again.
            torch.testing.assert_close(variate[name], gradient[name], rtol=1e-4, atol=1e-3)


def test_a_bad_image_drops_only_its_client(site: Site, handles: Handles, plan: RoundPlan) -> None:
    site.images._images.clear()
    path = site.data(SPEC.data).train["4"][0].path
    good = path.read_bytes()
    path.write_bytes(good[:100])
    try:
        reply = client_update(site, update_request(plan, "4", "5"))
    finally:
        path.write_bytes(good)
    assert [update.client for update in reply.updates] == ["5"]
    (failure,) = reply.failures
    assert (failure.client, failure.phase, failure.kind) == ("4", "request_update", "client-error")
    assert failure.reason.startswith(f"{path}: expected an image that can be decoded")
    assert "4" not in stored_updates(handles, plan)


def test_a_client_whose_images_changed_since_wake_up_is_dropped(site: Site, plan: RoundPlan) -> None:
    size = len(site.data(SPEC.data).train["5"])
    sizes = {"4": 10**9, "5": size}
    reply = client_update(site, update_request(plan, "4", "5").model_copy(update={"train_sizes": sizes}))
    assert [update.client for update in reply.updates] == ["5"]
    (failure,) = reply.failures
    found = len(site.data(SPEC.data).train["4"])
    assert (failure.client, failure.kind, failure.reason) == (
        "4",
        "client-error",
        f"client 4: its training images have changed since wake_up: expected 1000000000, found {found}",
    )


def test_figures_do_not_depend_on_the_parts_of_an_evaluation(site: Site, handles: Handles, model: WeightRef) -> None:
    ready = client_wake_up(site, wake(site, "1", "2")).ready
    found = []
    for parts in (1, 3):
        requests = [
            EvaluationRequest(
                federation=NAME, spec=SPEC, clients=("1", "2"), round=0, model=model,
                test_digest=ready[0].test_digest, test_size=5, part=part, parts=parts,
            )
            for part in range(parts)
        ]  # fmt: skip
        replies = [client_eval(site, request) for request in requests]
        assert sum(reply.images for reply in replies) == 5
        classes, digest = tuple(ready[0].class_counts), ready[0].test_digest
        assert all(as_answered(request, reply) == reply for request, reply in zip(requests, replies, strict=True))
        read = [read_part(handles, request, reply, 7) for request, reply in zip(requests, replies, strict=True)]
        found.append(score(SPEC, ("1", "2"), classes, digest, read, 0.0).model_copy(update={"seconds": 0}))
        assert found[-1].objects == class_counts(site.data(SPEC.data).test["1"], classes)
    assert found[0] == found[1]
    assert found[0].clients == ("1", "2")
    assert found[0].loss is not None
    assert found[0].map50_voc10 is not None
    assert set(found[0].per_class) == set(ready[0].class_counts)


def test_a_test_set_that_changed_is_not_scored(site: Site, model: WeightRef) -> None:
    request = EvaluationRequest(
        federation=NAME, spec=SPEC, clients=("2", "3"), round=0, model=model, test_digest="a" * 64, test_size=5,
        part=0, parts=1,
    )  # fmt: skip
    reply = client_eval(site, request)
    assert [failure.client for failure in reply.failures] == ["2", "3"]
    assert "its test set has changed since wake_up: expected digest aaaa" in reply.failures[0].reason


def test_a_sheet_is_a_picture_in_the_store(site: Site, handles: Handles, model: WeightRef) -> None:
    request = SheetRequest(federation=NAME, spec=SPEC, clients=("1",), model=model, images=3)
    reply = draw_sheet(site, request)
    assert reply.images == 3
    assert reply.detections is not None
    assert read_sheet(handles, request, as_answered(request, reply)).startswith(b"\x89PNG")


def test_the_environment_names_what_the_bits_depend_on(site: Site) -> None:
    environment = this_environment(SPEC)
    assert environment.torch.split("+")[0] == torch.__version__.split("+")[0]
    assert environment.threads == 1
    assert environment.cpu == site.device_name(SPEC)


def test_ignore_regions_reach_the_truth_in_the_store(
    home: Path, s3_settings: S3Settings, handles: Handles, model: WeightRef, tmp_path: Path
) -> None:
    data = drawn_data(SPEC.data, tmp_path / "cache")  # type: ignore[arg-type]
    regions = Regions(np.array([[8, 8, 40, 40]], np.float32), np.array([ANY_CLASS]))
    test = tuple(dataclasses.replace(sample, regions=regions) for sample in data.test["1"])
    write_coco(dataclasses.replace(data, test=dict.fromkeys(data.test, test)), tmp_path / "set")
    spec = SPEC.model_copy(update={"data": Coco(name="mine")})
    store = s3_settings.model_copy(update={"prefix": "phases"})
    place = Site(Settings(home=home, s3=store, data_roots={"mine": tmp_path / "set"}))
    (ready,) = client_wake_up(place, wake(place, "1", spec=spec)).ready
    request = EvaluationRequest(
        federation=NAME, spec=spec, clients=("1",), round=0, model=model, test_digest=ready.test_digest, test_size=5,
        part=0, parts=1,
    )  # fmt: skip
    part = read_part(handles, request, client_eval(place, request), 7)
    for sample, (boxes, labels, difficult) in zip(test, part.truth.values(), strict=True):
        objects = len(sample.labels)
        assert labels.tolist() == [*sample.labels.tolist(), *range(7)]
        assert boxes[objects:].tolist() == [[8, 8, 40, 40]] * 7
        assert present(difficult).tolist() == [False] * objects + [True] * 7
    record = score(spec, ("1",), tuple(ready.class_counts), ready.test_digest, [part], 0.0)
    assert record.objects == class_counts(test, data.classes)
    sheet = SheetRequest(federation=NAME, spec=spec, clients=("1",), model=model, images=3)
    with_regions = read_sheet(handles, sheet, draw_sheet(place, sheet))
    plain = Site(Settings(home=home, s3=store))
    assert with_regions != read_sheet(handles, sheet, draw_sheet(plain, sheet.model_copy(update={"spec": SPEC})))


def test_a_partly_labelled_client_learns_by_the_rule_and_the_others_as_ever(site: Site, plan: RoundPlan) -> None:
    space = {"5": site.data(SPEC.data).classes[:2]}
    data = SPEC.data.model_validate({**SPEC.data.model_dump(), "label_space": space, "unlabelled_score": 0.001})
    partly = SPEC.model_copy(update={"data": data})
    plain = client_update(site, update_request(plan, "3", "5"))
    found = [
        client_update(site, update_request(plan, *clients).model_copy(update={"spec": partly}))
        for clients in (("3", "5"), ("5",))
    ]
    assert [reply.failures for reply in found] == [(), ()]
    assert found[0].updates[0].weights.sha256 == plain.updates[0].weights.sha256
    assert found[0].updates[1].weights.sha256 != plain.updates[1].weights.sha256
    assert found[0].updates[1].weights.sha256 == found[1].updates[0].weights.sha256


def test_a_partly_labelled_client_s_own_test_set_is_scored_on_its_classes(
    site: Site, handles: Handles, model: WeightRef
) -> None:
    classes = site.data(SPEC.data).classes
    changes = {"test": "per-device", "label_space": {"1": classes[:2]}}
    spec = SPEC.model_copy(update={"data": SPEC.data.model_validate({**SPEC.data.model_dump(), **changes})})
    infos = {info.client: info for info in client_wake_up(site, wake(site, "1", "2", spec=spec)).ready}
    assert all(infos["1"].class_counts[name] == 0 for name in classes[2:])
    records = {}
    for client, info in infos.items():
        request = EvaluationRequest(
            federation=NAME, spec=spec, clients=(client,), round=0, model=model, test_digest=info.test_digest,
            test_size=info.test_size, part=0, parts=1,
        )  # fmt: skip
        part = read_part(handles, request, client_eval(site, request), len(classes))
        labels = {int(label) for item in part.detections.values() for label in item.labels}
        assert labels == ({0, 1} if client == "1" else set(range(len(classes))))
        records[client] = score(spec, (client,), classes, info.test_digest, [part], 0.0)
    assert all(records["1"].per_class[name] is None for name in classes[2:])
    assert any(records["2"].per_class[name] is not None for name in classes[2:])
