"""``fedbench show``: its head, and what it prints of a run that is not finished."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.cli.shared import out
from infra.files.lock import run_lock
from infra.settings import Settings
from infra.store.holding import Subject
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from tasks.spec.federation import FederationSpec
from tests.flows.command import fedbench
from tests.records import round_record

pytestmark = pytest.mark.usefixtures("own_environment")

SPEC = FederationSpec(max_rounds=2, seed=7)


class Store:
    """A prefix of the session's store with federations of ``SPEC``."""

    def __init__(self, objects: ObjectStore, settings: Settings) -> None:
        self.objects, self.settings = objects, settings

    def put(self, name: str, rounds: int) -> None:
        """Store a federation with ``rounds`` committed rounds of 90 seconds."""
        layout = FederationLayout(self.settings.s3.prefix, name)
        self.objects.put_json(layout.spec, SPEC.model_dump(mode="json"))
        for number in range(rounds):
            record = round_record(number, federation=name, seconds={"all": 90.0})
            self.objects.put_json(layout.marker(number), record.model_dump(mode="json"))

    def shown(self, name: str) -> list[str]:
        result = fedbench("show", name)
        assert result.exit_code == 0, result.output
        return result.output.splitlines()


@pytest.fixture
def store(object_store: ObjectStore, command_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(out, "_width", 200)  # the head is one line then
    return Store(object_store, command_settings)


def test_the_head_has_seed_and_wall_time(store: Store) -> None:
    store.put("done", 3)
    head, *lines = store.shown("done")
    assert head.startswith("done · ")
    assert head.endswith(f" · seed 7 · spec {SPEC.digest[:12]} · finished · took 0:04:30")
    assert not any("go on" in line or "no round" in line for line in lines)


def test_a_stopped_run_ends_with_the_command_that_goes_on(store: Store) -> None:
    store.put("half", 2)
    lines = store.shown("half")
    assert lines[0].endswith("stopped · took 0:03:00")
    assert lines[-1] == f"go on: fedbench resume half --home {store.settings.home}"
    assert "no round is committed yet" not in lines


def test_a_run_that_another_home_holds_may_go_on_there(store: Store, tmp_path: Path) -> None:
    store.put("half", 2)
    other = store.settings.model_copy(update={"home": tmp_path / "other"})
    with Subject.federation(other, "half").lease(store.objects, other, "fedbench run", locked=False) as lease:
        lease.acquire()
        line = store.shown("half")[-1]
    assert line.startswith("held by fedbench run on ")
    assert f"home {tmp_path}/other)" in line
    assert line.endswith(f"; if that is gone, go on: fedbench resume half --home {store.settings.home}")
    assert store.shown("half")[-1].startswith("go on: ")


def test_a_run_without_a_committed_round_says_so(store: Store) -> None:
    store.put("begun", 0)
    head, *lines = store.shown("begun")
    assert head.endswith("stopped")
    assert lines == ["no round is committed yet", f"go on: fedbench resume begun --home {store.settings.home}"]


def test_a_run_that_runs_has_no_command_that_goes_on(store: Store) -> None:
    store.put("now", 0)
    with run_lock(store.settings.home, "now"):
        head, *lines = store.shown("now")
    assert head.endswith("running")
    assert lines == ["no round is committed yet"]
