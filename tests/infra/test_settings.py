"""Settings come from the environment, then from a file. Their secrets are never printed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infra.errors import SettingsError
from infra.settings import load_settings, unknown_variables


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("FEDBENCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FEDBENCH_HOME", str(tmp_path))


def test_defaults_need_nothing(tmp_path: Path) -> None:
    settings = load_settings()
    assert settings.home == tmp_path
    assert settings.s3.endpoint is None
    assert settings.slots is None
    assert settings.keep_globals == 2
    assert not settings.keep_updates


def test_the_environment_wins_over_the_file_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "settings.yaml").write_text(
        "slots: 3\nkeep_updates: true\ns3: {bucket: from-file, region: eu-west-3}\n"
    )
    monkeypatch.setenv("FEDBENCH_SLOTS", "4")
    monkeypatch.setenv("FEDBENCH_S3__BUCKET", "from-environment")
    monkeypatch.setenv("FEDBENCH_LOG_LEVEL", "")  # an empty variable counts as not set
    settings = load_settings()
    assert settings.slots == 4
    assert settings.keep_updates
    assert (settings.s3.bucket, settings.s3.region) == ("from-environment", "eu-west-3")
    assert settings.log_level == "INFO"


def test_a_named_file_replaces_the_one_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "settings.yaml").write_text("slots: 3\n")
    (tmp_path / "other.yaml").write_text("keep_globals: 5\n")
    monkeypatch.setenv("FEDBENCH_SETTINGS", str(tmp_path / "other.yaml"))
    settings = load_settings()
    assert (settings.slots, settings.keep_globals) == (None, 5)
    (tmp_path / "other.yaml").write_text("")
    assert load_settings().keep_globals == 2


def test_data_sets_are_mapped_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDBENCH_STREET_DIR", "/data/street")
    monkeypatch.setenv("FEDBENCH_DATA_ROOTS", '{"yard": "/data/yard"}')
    settings = load_settings()
    assert settings.data_root("street") == Path("/data/street")
    assert settings.data_root("yard") == Path("/data/yard")
    assert settings.data_root("attic") is None
    monkeypatch.setenv("FEDBENCH_DATA_ROOTS", '{"street": "/elsewhere"}')
    assert load_settings().data_root("street") == Path("/elsewhere")


def test_credentials_are_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDBENCH_S3__ACCESS_KEY", "open-sesame")
    with pytest.raises(SettingsError, match=r"s3\.access_key and secret_key: expected both or neither") as caught:
        load_settings()
    assert "open-sesame" not in str(caught.value)
    monkeypatch.setenv("FEDBENCH_S3__SECRET_KEY", "hush")
    settings = load_settings()
    assert settings.s3.secret_key is not None
    assert settings.s3.secret_key.get_secret_value() == "hush"
    for text in (repr(settings), str(settings), settings.model_dump_json()):
        assert "hush" not in text
        assert "open-sesame" not in text


def test_an_unknown_variable_is_logged_once_with_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("FEDBENCH_TEST_KILLS", "FEDBENCH_SETTINGS", "FEDBENCH_SLOT", "FEDBENCH_SLOTS"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("FEDBENCH_DATA_ROOTS__YARD", "/data/yard")
    assert unknown_variables() == []
    monkeypatch.setenv("FEDBENCH_S3_ENDPOINT", "http://s3.example")  # one underscore instead of two
    monkeypatch.setenv("FEDBENCH_ZZZ", "1")
    load_settings()
    load_settings()
    assert [record.getMessage() for record in caplog.records] == [
        "FEDBENCH_S3_ENDPOINT: no such setting, it is ignored; did you mean FEDBENCH_S3__ENDPOINT?",
        "FEDBENCH_ZZZ: no such setting, it is ignored",
    ]


WRONG_FILES = {
    "slots: 3\nslots: 4\n": r"settings\.yaml: slots: expected each key once, found it twice on lines 1 and 2$",
    "data_roots: {a: /x, a: /y}\n": r"settings\.yaml: data_roots\.a: .* twice on line 1$",
    "\nslots: 010\n": r"settings\.yaml: line 2: slots: 010 has a leading zero",
    "worker: {stored_results: no}\n": r"settings\.yaml: line 1: worker\.stored_results: no is false in YAML 1\.1",
    "slots: true\n": r"slots: Input should be a valid integer",
    "worker: {drain_seconds: true}\n": r"worker\.drain_seconds: Input should be a valid number",
}


@pytest.mark.parametrize("text", WRONG_FILES)
def test_an_ambiguous_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(text)
    with pytest.raises(SettingsError, match=WRONG_FILES[text]):
        load_settings()


def test_names_in_a_file_are_read_as_text(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(
        "data_roots: {010: /x, no: 2026-01-02}\ns3: {region: 010, access_key: 1e3, secret_key: 007}\n"
        "prefect_api_url: null\nslots: ~\nworker: {slots: cpu, slots_per_gpu: 2}\n"
    )
    settings = load_settings()
    assert settings.data_roots == {"010": Path("/x"), "no": Path("2026-01-02")}
    assert settings.s3.access_key is not None
    assert settings.s3.secret_key is not None
    keys = settings.s3.access_key.get_secret_value(), settings.s3.secret_key.get_secret_value()
    assert (settings.s3.region, *keys) == ("010", "1e3", "007")
    assert (settings.prefect_api_url, settings.slots, settings.worker.slots_per_gpu) == (None, None, 2)


def test_a_key_twice_in_the_json_of_a_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDBENCH_DATA_ROOTS", '{"yard": "/a",\n"yard": "/b"}')
    with pytest.raises(SettingsError, match=r"FEDBENCH_DATA_ROOTS: yard: .* twice on lines 1 and 2 of its JSON"):
        load_settings()
    monkeypatch.setenv("FEDBENCH_DATA_ROOTS", "{}")
    monkeypatch.setenv("FEDBENCH_POOLS__SILOS", '{"a": "x", "a": "y"}')
    with pytest.raises(SettingsError, match=r"silos: a: .* twice on line 1"):
        load_settings()
