"""References: the centralised twin learns from the same images, as often, in one client; local-only from one device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save

from infra.settings import Settings
from infra.settings_groups import S3Settings
from infra.store.objects import ObjectStore
from infra.store.weights import WeightStore
from tasks.client_update import client_update
from tasks.client_wake_up import client_wake_up
from tasks.data.catalog import pool
from tasks.data.check import check_data
from tasks.data.export.coco import write_coco
from tasks.data.image_cache import ImageCache
from tasks.data.loading import training_loader
from tasks.data.samples import FederatedData, samples_digest
from tasks.detectors.registry import build_detector
from tasks.detectors.state import state_of
from tasks.errors import DataError, SpecError
from tasks.site import Site
from tasks.spec.clients import ByField
from tasks.spec.data import Coco, SyntheticStreet
from tasks.spec.detector import YoloV3TinySpec
from tasks.spec.federation import FederationSpec, changed_fields, parse_spec, with_fields
from tasks.spec.participation import Participation
from tasks.spec.plans import WeightRef
from tasks.spec.presets import preset
from tasks.spec.references import is_local_only, is_twin, local_only, twin
from tasks.spec.strategies import FedAvgSpec
from tasks.spec.training import TrainingSpec
from tasks.spec.turns import UpdateRequest, WakeUpRequest
from tasks.training.seeds import derive_seed
from tests.tasks.drawn_data import drawn_data

TINY = SyntheticStreet(train_images=40, test_images=8, width=64, height=64)
SPEC = FederationSpec(
    data=TINY,
    detector=YoloV3TinySpec(width=64, height=64, assignment="side-ratio", box_loss="ciou"),
    training=TrainingSpec(batch_size=4, local_epochs=2),
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


# --- the specification -------------------------------------------------------------------------------------


def test_a_twin_differs_only_in_its_data() -> None:
    spec = preset("street5")
    centralised = twin(spec)
    assert centralised.clients == ("all",)
    assert changed_fields(spec, centralised) == {"data.pooled": (False, True)}
    assert centralised.digest != spec.digest
    assert is_twin(spec, centralised)
    assert not is_twin(centralised, spec)
    assert not is_twin(spec, spec)


def test_a_twin_pools_the_participating_clients_and_drops_settings_for_several() -> None:
    rule = Participation(
        clients=("5", "3"), clients_per_round=1, min_updates=1, min_clients=2, shards=2, turn_deadline=9, turn_retries=7
    )
    spec = SPEC.model_copy(update={"participation": rule})
    centralised = twin(spec)
    assert centralised.data.pooled_devices == ("5", "3")
    assert centralised.participation == Participation(turn_retries=7)
    assert centralised.strategy == FedAvgSpec()
    assert is_twin(spec, centralised)
    assert is_twin(spec, twin(with_fields(spec, {"participation.clients": ["3", "5"]}, source="x")))
    assert not is_twin(spec, twin(SPEC))
    everyone = with_fields(SPEC, {"participation.clients": ["1", "2", "3", "4", "5"]}, source="x")
    assert is_twin(everyone, twin(SPEC))
    assert is_twin(SPEC, twin(everyone))


def test_a_longer_run_stays_a_twin_and_another_experiment_is_none() -> None:
    longer = with_fields(twin(SPEC), {"max_rounds": 99, "patience": 3, "target_map": 0.5}, source="x")
    assert is_twin(SPEC, longer)
    for field, value in (("seed", 2), ("training.local_epochs", 3), ("data.seed", 1), ("detector.width", 96)):
        assert not is_twin(SPEC, with_fields(longer, {field: value}, source="x"))


def test_devices_known_only_from_the_data_are_pooled_too() -> None:
    spec = FederationSpec(data=Coco(name="mine", clients=ByField()))
    assert spec.clients is None
    assert twin(spec).clients == ("all",)
    read = with_fields(spec, {"participation.clients": ["east", "west"]}, source="x")  # as a run pins them
    assert is_twin(read, twin(spec))
    assert twin(read).data.pooled_devices == ("east", "west")


def test_digests_without_pooling_have_not_changed() -> None:
    assert preset("synthetic5").digest[:8] == "e6b255e8"  # README's run
    assert preset("smoke").digest.startswith("7d2e11f4ca930c8a")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"pooled": "maybe"}, "my.yaml: data.pooled: expected true or false, found 'maybe'"),
        ({"pooled_devices": ["1"]}, "my.yaml: data.pooled_devices: expected none unless pooled is true"),
        (
            {"pooled": True, "pooled_devices": ["1", "9"]},
            "my.yaml: data.pooled_devices: expected devices of the data set, 1 to 5, found 9",
        ),
        ({"pooled": True, "pooled_devices": []}, "my.yaml: data.pooled_devices: expected a list of at least 1"),
        ({"pooled": True, "pooled_devices": ["1", "1"]}, "my.yaml: data.pooled_devices: expected each device once"),
    ],
)
def test_wrong_fields_are_named(data: dict[str, object], says: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec({"data": {"kind": "synthetic-street", **data}}, source="my.yaml")
    assert str(caught.value).startswith(says)
    with pytest.raises(SpecError, match=r"^data\.pooled: expected a federation of devices"):
        twin(twin(SPEC))


# --- the data ----------------------------------------------------------------------------------------------


def test_pooled_data_have_every_training_image_once_and_the_same_test_set(cache: Path) -> None:
    apart, pooled = drawn_data(TINY, cache), drawn_data(TINY.model_copy(update={"pooled": True}), cache)
    assert list(pooled.train) == list(pooled.test) == ["all"]
    expected = [sample.key for samples in apart.train.values() for sample in samples]
    assert [sample.key for sample in pooled.train["all"]] == expected
    assert len(expected) == len(set(expected)) == 40
    assert samples_digest(pooled.test["all"]) == samples_digest(apart.test["1"])
    assert (pooled.digest, pooled.classes) == (apart.digest, apart.classes)
    assert len(list((cache / "synthetic-street").iterdir())) == 1  # both use the same drawn images


def test_chosen_devices_are_pooled_in_the_data_sets_order(cache: Path) -> None:
    apart = drawn_data(TINY, cache)
    pooled = drawn_data(TINY.model_copy(update={"pooled": True, "pooled_devices": ("5", "3")}), cache)
    assert samples_digest(pooled.train["all"]) == samples_digest((*apart.train["3"], *apart.train["5"]))
    with pytest.raises(DataError, match="no client 9; its clients are 1, 2, 3, 4, 5"):
        pool(apart, ["1", "9"])


def test_test_sets_of_devices_become_their_union(cache: Path) -> None:
    spec = TINY.model_copy(update={"test": "per-device"})
    apart, pooled = drawn_data(spec, cache), drawn_data(spec.model_copy(update={"pooled": True}), cache)
    own = [sample.key for samples in apart.test.values() for sample in samples]
    assert [sample.key for sample in pooled.test["all"]] == own
    assert len(own) == len(set(own)) == 8


def test_a_check_of_pooled_data_reports_all_devices(cache: Path) -> None:
    pooled = TINY.model_copy(update={"pooled": True, "pooled_devices": ("2",)})
    report = check_data(pooled, root_of=lambda name: None, cache=cache)
    assert [device.device for device in report.devices] == ["1", "2", "3", "4", "5"]


# --- the training ------------------------------------------------------------------------------------------


def passes(spec: FederationSpec, data: FederatedData) -> dict[str, int]:
    """Return how often a round's training reads each image."""
    seen: dict[str, int] = {}
    for client in spec.clients or ():
        keys = {sample.content: sample.key for sample in data.train[client]}
        assert len(keys) == len(data.train[client])
        loader = training_loader(
            data.train[client], width=64, height=64, batch_size=4, epochs=spec.training.local_epochs, seed=1, round=1,
            client=client, augmentation=spec.training.augmentation, workers=0, cache=ImageCache(10),
        )  # fmt: skip
        shown = sum(batch.images.shape[0] for batch in loader)
        assert shown == len(keys) * spec.training.local_epochs
        seen |= dict.fromkeys(keys.values(), shown // len(keys))
    return seen


def test_a_twins_round_reads_the_same_images_as_often(cache: Path) -> None:
    apart = passes(SPEC, drawn_data(TINY, cache))
    centralised = twin(SPEC)
    assert isinstance(centralised.data, SyntheticStreet)
    assert passes(centralised, drawn_data(centralised.data, cache)) == apart
    assert set(apart.values()) == {2}


@pytest.mark.usefixtures("one_thread")
def test_a_federation_of_one_device_and_its_twin_give_equal_bits(
    cache: Path, tmp_path: Path, s3_settings: S3Settings
) -> None:
    write_coco(drawn_data(TINY.model_copy(update={"pooled": True}), cache), tmp_path / "one")  # its device is named all
    spec = FederationSpec(data=Coco(name="one"), detector=SPEC.detector, training=TrainingSpec(batch_size=8))
    site = Site(Settings(
        home=tmp_path / "home", data_roots={"one": tmp_path / "one"},
        s3=s3_settings.model_copy(update={"prefix": "centralised"}),
    ))  # fmt: skip
    store = WeightStore(ObjectStore(site.settings.s3), tmp_path / "cache", 100)
    start = store.put("centralised/start", save(state_of(build_detector(spec.detector, 7, seed=spec.seed))))
    model = WeightRef(key=start.key, sha256=start.sha256, bytes=start.bytes)
    found = []
    for name, own in (("one-device", spec), ("its-twin", twin(spec))):
        (ready,) = client_wake_up(site, WakeUpRequest(federation=name, spec=own, clients=("all",))).ready
        request = UpdateRequest(
            federation=name, spec=own, clients=("all",), round=1, spec_digest=own.digest, model=model,
            seeds={"all": derive_seed(own.seed, "turn", 1, "all")}, learning_rate=1e-3,
        )  # fmt: skip
        (update,) = client_update(site, request).updates
        found.append((update.weights.sha256, update.train_loss, update.steps, ready.test_digest, ready.train_size))
    assert found[0] == found[1]
    assert found[0][0] != model.sha256


# --- local only --------------------------------------------------------------------------------------------


def test_local_only_differs_only_in_its_data() -> None:
    spec = preset("street5")
    alone = local_only(spec, "3")
    assert alone.clients == ("3",)
    assert changed_fields(spec, alone) == {"data.local_only": (None, "3")}
    assert is_local_only(spec, alone)
    assert is_local_only(spec, alone.model_copy(update={"max_rounds": 99}))
    assert not is_local_only(spec, twin(spec))
    assert not is_twin(spec, alone)
    assert not is_local_only(spec.model_copy(update={"seed": 5}), alone)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: local_only(preset("street5"), "6"), "expected one of the clients 1, 2, 3, 4, 5, found 6"),
        (lambda: local_only(twin(preset("street5")), "1"), "data.pooled: expected a federation"),
        (lambda: twin(local_only(preset("street5"), "1")), "data.local_only: expected a federation"),
        (lambda: with_fields(SPEC, {"data.local_only": "9"}, source="x"), "a device of the data set, 1 to 5, found 9"),
        (lambda: with_fields(twin(SPEC), {"data.local_only": "1"}, source="x"), "local_only: expected none where"),
    ],
)
def test_what_cannot_be_local_only(make: Callable[[], FederationSpec], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        make()


@pytest.mark.parametrize("test", ["global", "per-device"])
def test_a_local_only_run_has_its_devices_images_and_all_test_images(cache: Path, test: str) -> None:
    federated = drawn_data(TINY.model_copy(update={"test": test}), cache)
    alone = drawn_data(TINY.model_copy(update={"test": test, "local_only": "3"}), cache)
    pooled = drawn_data(TINY.model_copy(update={"test": test, "pooled": True}), cache)
    assert list(alone.train) == list(alone.test) == ["3"]
    assert samples_digest(alone.train["3"]) == samples_digest(federated.train["3"])
    assert samples_digest(alone.test["3"]) == samples_digest(pooled.test["all"])
    assert alone.digest == federated.digest


def test_a_reference_has_nothing_to_fine_tune() -> None:
    plain = FederationSpec()
    tuned = with_fields(plain, {"fine_tuning.epochs": 2}, source="test")
    assert twin(tuned) == twin(plain)
    assert is_twin(tuned, twin(plain))
