"""Which federation ``fedbench run SPEC`` without a name means, by what a real store has."""

from __future__ import annotations

import pytest

from flows.commands.arguments import default_name
from flows.commands.run_name import NamedRun, choose_run, find_run
from flows.coordinator.preflight import claim_name, pin
from flows.stored.spec_copy import keep_spec
from infra.errors import SettingsError
from infra.files.lock import run_lock
from infra.settings import Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from tasks.errors import DataError
from tasks.spec.data import FederatedStreet, SyntheticStreet
from tasks.spec.federation import FederationSpec, with_fields
from tasks.spec.references import twin

SPEC = FederationSpec(max_rounds=4)
GIVEN = FederationSpec(max_rounds=4, data=FederatedStreet())


def with_digest(digit: str) -> FederationSpec:
    """Return GIVEN with a digest of its data."""
    return with_fields(GIVEN, {"data.digest": digit * 64}, source="x")


def rounds(number: int, spec: FederationSpec = SPEC) -> FederationSpec:
    return spec.model_copy(update={"max_rounds": number})


class Store:
    """A store in which federations are begun and extended."""

    def __init__(self, objects: ObjectStore, settings: Settings) -> None:
        self.objects, self.settings = objects, settings

    def layout(self, name: str) -> FederationLayout:
        return FederationLayout(self.settings.s3.prefix, name)

    def begin(self, spec: FederationSpec, name: str | None = None, base: str = "shapes") -> str:
        name = name or default_name(base, spec)
        self.objects.put_json(self.layout(name).spec, spec.model_dump(mode="json"))
        return name

    def choose(self, spec: FederationSpec, given: FederationSpec | None = None, base: str = "shapes") -> NamedRun:
        return choose_run(self.objects, self.settings, base, given or spec, spec)


@pytest.fixture
def store(object_store: ObjectStore, settings: Settings) -> Store:
    return Store(object_store, settings)


def test_a_new_experiment_gets_a_name_with_its_digest(store: Store) -> None:
    store.begin(with_fields(SPEC, {"seed": 1}, source="x"))
    store.begin(SPEC, base="shapes-2")
    store.begin(twin(SPEC))
    assert store.choose(SPEC) == NamedRun(f"shapes-{SPEC.digest[:8]}", SPEC)
    assert store.choose(twin(SPEC), base="other").name.endswith("-centralised")


def test_a_run_that_was_extended_goes_on_with_the_rounds_it_has_now(store: Store) -> None:
    name = store.begin(SPEC)
    assert store.choose(SPEC) == NamedRun(name, SPEC)
    store.begin(rounds(9), name)  # fedbench resume NAME --max-rounds 9
    assert store.choose(SPEC) == NamedRun(name, rounds(9), f"{name} has been extended to 9 rounds")


def test_more_rounds_extend_the_longest_run_of_the_experiment(store: Store) -> None:
    short, long = store.begin(rounds(2)), store.begin(rounds(3))
    store.begin(with_fields(SPEC, {"max_rounds": 3, "seed": 1}, source="x"))
    store.begin(rounds(3), "mine")  # a person has named it
    store.begin(rounds(9), "shapes-0badcafe")
    found = store.choose(SPEC)
    assert found == NamedRun(long, SPEC, f"{long} has 3 rounds of this experiment; it is extended")
    store.begin(SPEC, long)
    assert store.choose(SPEC) == NamedRun(long, SPEC)  # the same command again
    assert store.choose(rounds(2)).name == short
    assert store.choose(rounds(1)) == NamedRun(default_name("shapes", rounds(1)), rounds(1))  # fewer: a run of its own


def test_a_shorter_run_in_progress_is_left_alone(store: Store) -> None:
    shorter, equal = store.begin(rounds(2)), store.begin(rounds(3), "shapes-00000000")
    with run_lock(store.settings.home, shorter), run_lock(store.settings.home, equal):
        assert store.choose(SPEC).name == default_name("shapes", SPEC)
        assert store.choose(rounds(3)).name == equal  # refused later, because it is running
    assert store.choose(SPEC).name == equal


def test_a_run_named_before_its_data_were_read_is_found(store: Store) -> None:
    spec = with_digest("a")
    old = store.begin(spec, default_name("shapes", GIVEN))
    assert old != default_name("shapes", spec)
    assert store.choose(spec, GIVEN) == NamedRun(old, spec)
    store.begin(rounds(7, spec), old)
    assert store.choose(spec, GIVEN).spec == rounds(7, spec)
    assert store.choose(rounds(8, spec), rounds(8, GIVEN)).name == old


def test_data_that_have_changed_are_a_new_run_and_the_user_gets_a_note(store: Store) -> None:
    old = store.begin(with_digest("a"), default_name("shapes", GIVEN))
    spec = with_digest("b")
    found = store.choose(spec, GIVEN)
    assert found.name == default_name("shapes", spec) != old
    said = f"{old} learned other data (data.digest was aaaaaaaa, now bbbbbbbb), so this is a new federation"
    assert found.note == said


def test_a_damaged_specification_does_not_hide_a_run(store: Store) -> None:
    name = store.begin(SPEC)
    store.objects.put_bytes(store.layout(name).spec, b"{")
    assert store.choose(SPEC) == NamedRun(name, SPEC)  # which mends it, or refuses
    keep_spec(store.settings, name, rounds(9))
    assert store.choose(SPEC).spec == rounds(9)  # this machine's copy


def test_the_digest_in_a_name_is_that_of_the_stored_specification(
    command_settings: Settings, object_store: ObjectStore
) -> None:
    small = FederationSpec(data=SyntheticStreet(train_images=40, test_images=5, width=64, height=64))
    pin(small, command_settings)  # draws the images
    drawn = next((command_settings.home / "cache" / "data" / "synthetic-street").iterdir())
    settings = command_settings.model_copy(update={"street_dir": drawn})
    found = find_run(settings, "shapes", GIVEN, lambda line: None)
    assert found.spec == pin(GIVEN, settings)
    assert found.name == f"shapes-{found.spec.digest[:8]}" != default_name("shapes", GIVEN)
    claim_name(object_store, FederationLayout(settings.s3.prefix, found.name), found.spec)
    assert find_run(settings, "shapes", GIVEN, lambda line: None) == found
    longer = find_run(settings, "shapes", rounds(9, GIVEN), lambda line: None)
    assert (longer.name, longer.spec) == (found.name, rounds(9, found.spec))


def test_the_machine_is_checked_before_the_data_are_read(command_settings: Settings) -> None:
    with pytest.raises(SettingsError, match=r"training\.threads"):
        find_run(command_settings, "shapes", with_fields(GIVEN, {"training.threads": 64}, source="x"), print)
    with pytest.raises(DataError, match="no folder is known for data set 'street'"):
        find_run(command_settings, "shapes", GIVEN, print)
