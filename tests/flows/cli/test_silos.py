"""Federations whose clients have their own pools: what is refused at the start, and the printed policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.coordinator.preflight import pin
from infra.settings import Settings
from infra.settings_groups import PoolSettings
from infra.turns.silo_policy import silo_policy
from tasks.errors import DataError, SpecError
from tasks.spec.clients import Iid
from tasks.spec.data import FederatedStreet, VocFolders
from tasks.spec.federation import FederationSpec
from tasks.spec.participation import Participation
from tests.flows.command import fedbench

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "docs" / "silo-policy.json"
DIGEST = "a" * 64
CAMERAS = VocFolders(name="cameras", classes=("chair", "table"))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return settings of a coordinator without data, with devices 1 and 2 in silos."""
    return Settings(home=tmp_path, pools=PoolSettings(turns="gpu", silos={"1": "silo-a", "2": "silo-b"}))


def spec(data: Any = CAMERAS, *, clients: tuple[str, ...] | None = ("1", "2"), check: bool = True) -> FederationSpec:
    return FederationSpec(data=data, participation=Participation(clients=clients, check_load=check))


def test_the_coordinator_needs_no_data_of_silos(settings: Settings, tmp_path: Path) -> None:
    assert pin(spec(), settings) == spec()
    # The coordinator's own folder is not read either, because it has only a part of the images.
    own = settings.model_copy(update={"data_roots": {"cameras": tmp_path / "not-there"}})
    assert pin(spec(), own) == spec()
    assert pin(spec(clients=("1", "7")), own) == spec(clients=("1", "7"))


def test_without_silos_the_data_are_read_at_the_start(settings: Settings) -> None:
    with pytest.raises(DataError, match="no folder is known for data set 'cameras'"):
        pin(spec(clients=("7", "8"), check=False), settings)
    with pytest.raises(DataError, match="no folder is known for data set 'cameras'"):
        pin(spec(check=False), settings.model_copy(update={"pools": PoolSettings()}))


def test_silos_require_the_check_of_the_load(settings: Settings) -> None:
    with pytest.raises(SpecError, match=r"participation\.check_load: expected true, .*pools\.silos: 1\), found false"):
        pin(spec(clients=("7", "1"), check=False), settings)


def test_with_silos_the_clients_must_be_named(settings: Settings) -> None:
    with pytest.raises(SpecError, match=r"participation\.clients: expected the devices by name.*found none"):
        pin(spec(clients=None), settings)


@pytest.mark.parametrize(
    "data", [FederatedStreet(), VocFolders(name="mine", clients=Iid(clients=2))], ids=["published", "divided"]
)
def test_a_data_set_that_each_silo_has_whole_needs_its_content_digest(
    settings: Settings, data: FederatedStreet | VocFolders
) -> None:
    with pytest.raises(SpecError, match=rf"data\.digest: expected the content digest of data set {data.name}"):
        pin(spec(data), settings)
    whole = spec(data.model_copy(update={"digest": DIGEST}))
    assert pin(whole, settings) == whole
    here = settings.model_copy(update={"data_roots": {data.name: settings.home / "not-there"}})
    with pytest.raises(DataError, match="not-there"):
        pin(whole, here)


def test_the_policy_of_a_pools_devices_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "settings.yaml").write_text(
        "s3: {bucket: ours, prefix: runs}\npools: {silos: {'1': silo-a, '3': silo-b, '4': silo-b}}\n"
    )
    monkeypatch.setenv("FEDBENCH_HOME", str(tmp_path))
    printed = fedbench("silo-policy", "silo-b")
    assert printed.exit_code == 0
    assert json.loads(printed.output) == silo_policy("ours", "runs", "silo-b", ["3", "4"])
    named = fedbench("silo-policy", "silo-b", "--client", "9", "--federation", "street")
    assert json.loads(named.output) == silo_policy("ours", "runs", "silo-b", ["9"], "street")
    for arguments, says in (
        (
            ["silo-c"],
            "pools.silos: expected devices whose pool is silo-c, or --client, found none (pools: silo-a, silo-b)",
        ),
        (["silo-b", "--client", "*"], "--client: expected letters, digits"),
        (["*", "--client", "1"], "POOL: expected letters, digits"),
    ):
        refused = fedbench("silo-policy", *arguments)
        assert (refused.exit_code, says in refused.output) == (2, True), refused.output


def test_the_example_is_what_the_command_prints() -> None:
    assert json.loads(EXAMPLE.read_bytes()) == silo_policy("fedbench", "federations", "silo-b", ["3", "4", "5"])
