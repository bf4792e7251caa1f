"""Toys by their rule, in a real store: found, kept with a reason, and removed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from flows.stored.toys import clean_toys, find_toys, remove_toys
from infra.files.lock import run_lock
from infra.settings import Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from infra.store.suite_layout import SuiteLayout
from tasks.errors import SpecError
from tasks.spec.data import Coco, SyntheticStreet
from tasks.spec.federation import FederationSpec
from tests.flows.command import fedbench

LATER = datetime.now(UTC) + timedelta(days=10)
SPECS = {
    "toy": FederationSpec(data=SyntheticStreet()),
    "busy": FederationSpec(data=SyntheticStreet()),
    "yards": FederationSpec(data=Coco(name="yards")),
    "smoke-1.a.s1": FederationSpec(data=SyntheticStreet()),  # a cell of the suite run smoke-1
    "smoke-2.a": FederationSpec(data=SyntheticStreet()),  # no such suite run
}


@pytest.fixture
def stored(command_settings: Settings, object_store: ObjectStore) -> Settings:
    prefix = command_settings.s3.prefix
    for name, spec in SPECS.items():
        layout = FederationLayout(prefix, name)
        object_store.put_json(layout.spec, spec.model_dump(mode="json"))
        object_store.put_bytes(layout.global_weights(0), b"w" * 1000)
    object_store.put_json(FederationLayout(prefix, "damaged").spec, {"version": 1, "data": "?"})
    object_store.put_json(SuiteLayout(prefix, "smoke-1").suite, {})
    return command_settings


def test_only_old_runs_of_synthetic_images_outside_suites_are_toys(stored: Settings) -> None:
    found = find_toys(stored, older_than_days=7, now=LATER)
    assert [toy.name for toy in found] == ["busy", "smoke-2.a", "toy"]
    assert all(toy.objects == 2 and toy.bytes > 1000 for toy in found)
    assert find_toys(stored, older_than_days=7) == []
    assert [toy.name for toy in find_toys(stored, older_than_days=7, names=["toy", "yards"], now=LATER)] == ["toy"]
    with pytest.raises(SpecError, match="nobody: no such federation"):
        find_toys(stored, older_than_days=7, names=["nobody"])


def test_toys_go_and_one_that_runs_stays(stored: Settings, object_store: ObjectStore) -> None:
    toys = find_toys(stored, older_than_days=0, now=LATER)
    with run_lock(stored.home, "busy"):
        failed = remove_toys(stored, toys)
    assert list(failed) == ["busy"]
    left = {key.removeprefix(f"{stored.s3.prefix}/").split("/")[0] for key in object_store.list(stored.s3.prefix)}
    assert left & SPECS.keys() == {"busy", "yards", "smoke-1.a.s1"}


def test_a_clean_up_has_rows_and_a_text_of_the_toys_that_are_gone(stored: Settings) -> None:
    would = clean_toys(stored, apply=False, older_than_days=0)
    assert (would.applied, would.failed, would.describe()) == (False, {}, "3 federations, 0.0 MB")
    assert [(row["federation"], row["objects"], row["not removed"]) for row in would.rows()] == [
        ("busy", 2, 0), ("smoke-2.a", 2, 0), ("toy", 2, 0)
    ]  # fmt: skip
    with run_lock(stored.home, "busy"):
        done = clean_toys(stored, apply=True, older_than_days=0, names=["busy", "toy"])
    assert [(row["federation"], row["not removed"]) for row in done.rows()] == [("busy", 2), ("toy", 0)]
    assert done.describe() == "1 federation, 0.0 MB"
    assert clean_toys(stored, apply=False, older_than_days=7).rows() == []


def test_the_command_prints_the_rule_and_removes_nothing_unless_asked(stored: Settings) -> None:
    listed = fedbench("clean", "--toys", "--older-than", 0)
    assert listed.exit_code == 0, listed.output
    text = " ".join(listed.output.split())
    assert "rule: a toy is a federation of synthetic images that is no cell of a suite run" in text
    assert "would be removed with --apply: 3 federations, 0.0 MB" in text
    again = fedbench("clean", "--toys", "--older-than", 0, "toy", "--apply")
    assert "removed: 1 federation, 0.0 MB" in again.output
    assert "nothing to remove" in fedbench("clean", "--toys").output
