"""``fedbench run --dry-run``: its text is a specification of the same digest, and it starts and writes nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.commands.dry_run import DryRun, dry_run, what_happens
from flows.coordinator.preflight import pin
from infra.errors import RunLocked
from infra.files.lock import run_lock
from infra.settings import Settings
from infra.store.folder_store import FolderStore
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from tasks.errors import SpecError
from tasks.spec.data import SyntheticStreet
from tasks.spec.federation import FederationSpec, load_spec
from tasks.spec.presets import PRESETS, preset
from tasks.spec.records import Decision
from tasks.spec.suite import cells_of
from tasks.spec.suite_presets import suite_preset
from tests.flows.command import fedbench
from tests.records import round_record

pytestmark = pytest.mark.usefixtures("own_environment")

SMALL = SyntheticStreet(train_images=40, test_images=5, width=64, height=64)
SPEC = preset("smoke").model_copy(update={"data": SMALL, "max_rounds": 2})
SETTING = ("-s", "data.train_images=40", "-s", "data.test_images=5", "-s", "data.width=64", "-s", "data.height=64")
COMMAND = ("run", "smoke", *SETTING, "--dry-run")

EVERY_SPEC = {name: preset(name) for name in PRESETS} | {
    cell.name: cell.spec for suite in ("smoke", "methods", "methods-smoke", "cpu") for cell in cells_of(
        suite_preset(suite), whole=False
    )
}  # fmt: skip


def files_below(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return mode and time of the last change of all below ``folder``."""
    return {path: (path.stat().st_mode, path.stat().st_mtime_ns) for path in [folder, *folder.rglob("*")]}


def printed(*words: object) -> str:
    result = fedbench(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("name", EVERY_SPEC)
def test_the_text_is_a_specification_of_the_same_digest(name: str, tmp_path: Path) -> None:
    spec = EVERY_SPEC[name]
    path = tmp_path / "pasted.yaml"
    path.write_text(DryRun(name, spec, ["name: x", "a note\nof two lines: - ["]).text)
    assert load_spec(path) == spec
    assert load_spec(path).digest == spec.digest


def test_the_printed_text_runs_as_the_same_experiment(tmp_path: Path) -> None:
    home = tmp_path / "home"
    text = printed(*COMMAND, "-s", "strategy.kind=fedprox", "-s", "training.optimizer.lr=1e-5", "--home", home)
    path = tmp_path / "pasted.yaml"
    path.write_text(text)
    digest = re.search(r"^# digest: ([0-9a-f]{64})$", text, re.MULTILINE)
    assert digest is not None
    assert load_spec(path).digest == digest[1]
    assert load_spec(path).training.optimizer.lr == 1e-5
    again = printed("run", path, "--dry-run", "--home", home)
    assert f"# digest: {digest[1]}\n" in again
    assert again.partition("\nversion:")[2] == text.partition("\nversion:")[2]


def test_it_says_what_would_happen_and_of_what_size(tmp_path: Path) -> None:
    lines = printed(*COMMAND, "--name", "mine", "--home", tmp_path / "home").splitlines()
    found = dict(line.removeprefix("# ").split(": ", 1) for line in lines if line.startswith("# ") and ": " in line)
    assert found["name"] == "mine"
    assert "# would begin a new federation: round 0, the initial model, then rounds 1 to 2" in lines
    assert found["data"].startswith("synthetic-street, 7 classes, 40 training images at 5 clients, 5 test images")
    of_clients = [int(text.split()[0]) for name, text in found.items() if name.strip().startswith("client ")]
    assert sum(of_clients) == 40
    assert len(of_clients) == 5
    parameters = re.search(r"([\d,]+) parameters", found["detector"])
    assert parameters is not None
    assert int(parameters[1].replace(",", "")) > 1_000_000
    size = re.fullmatch(
        r"([\d.]+) MB down to 5 clients and ([\d.]+) MB up, ([\d.]+) MB exchanged \(a model is ([\d.]+) MB\)",
        found["bytes of a round"],
    )
    assert size is not None
    down, up, exchanged, model = map(float, size.groups())
    assert down == up == pytest.approx(5 * model, abs=0.3)
    assert exchanged == pytest.approx(down + up, abs=0.15)


@pytest.mark.parametrize(
    ("fields", "expected", "more_down"),
    [
        (("participation.clients_per_round=2",), "2 of 5 clients", False),
        (("participation.shards=1", "participation.partial_sums=true"), "5 of 5 clients", True),
        (("strategy.kind=fedper",), "5 of 5 clients", True),  # a client's head goes both ways, beside the whole model
    ],
)
def test_a_round_has_its_clients(fields: tuple[str, ...], expected: str, more_down: bool, tmp_path: Path) -> None:
    words = [word for field in fields for word in ("-s", field)]
    text = printed(*COMMAND, *words, "--home", tmp_path / "home")
    assert f"# each round: {expected}, 1 local epoch\n" in text
    size = re.search(r"round: ([\d.]+) MB down to .* and ([\d.]+) MB up", text)
    assert size is not None
    assert (float(size[1]) > float(size[2])) == more_down


def test_a_reference_needs_no_bytes(tmp_path: Path) -> None:
    text = printed(*COMMAND, "--centralised", "--home", tmp_path / "home")
    assert re.search(r"^# name: smoke-[0-9a-f]{8}-centralised$", text, re.MULTILINE)
    assert "MB, which one client alone need not send" in text


@pytest.fixture
def own_home(tmp_path: Path, s3_home: Path, settings: Settings, object_store: ObjectStore) -> Callable[..., Settings]:
    """Return a function that returns a home with federations ``mine`` in its own store, which has no server."""

    def make(spec: FederationSpec = SPEC, *, rounds: int = 0, damaged: bool = False) -> Settings:
        layout = FederationLayout(settings.s3.prefix, "mine")
        object_store.put_json(layout.spec, spec.model_dump(mode="json"))
        for number in range(rounds):
            record = round_record(number, federation="mine", decision=Decision(stop=False, best_round=0))
            object_store.put_json(layout.marker(number), record.model_dump(mode="json"))
        if damaged:
            object_store.put_bytes(layout.marker(rounds - 1), b"{")
        home, below = tmp_path / "own", Path("s3", settings.s3.bucket, *settings.s3.prefix.split("/"))
        shutil.copytree(s3_home / below, home / below)
        home.chmod(0o755)
        return settings.model_copy(update={"home": home})

    return make


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "begun": ({}, "begin, because no round is committed yet: round 0, then rounds 1 to 2"),
    "half": ({"rounds": 2}, "go on after round 1, the last commit: rounds 2 to 2"),
    "finished": ({"rounds": 3}, "print the result of the finished federation: rounds 0 to 2; nothing is trained"),
    "damaged": ({"rounds": 2, "damaged": True}, "mend round 1, whose record is damaged, and go on"),
    "shorter": (
        {"spec": SPEC.model_copy(update={"max_rounds": 1}), "rounds": 2},
        "go on after round 1, the last commit: rounds 2 to 2",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_store_decides_and_nothing_is_written_or_started(
    own_home: Callable[..., Settings], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, expected = CASES[case]
    settings = own_home(**given)
    monkeypatch.setenv("FEDBENCH_S3__PREFIX", settings.s3.prefix)
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **options: pytest.fail(f"started {arguments}"))
    before = files_below(settings.home)
    text = printed(*COMMAND, "--name", "mine", "--home", settings.home)
    assert f"\n# would {expected}\n" in text
    assert files_below(settings.home) == before
    assert not torch.cuda.is_initialized()


def test_a_home_that_is_not_there_stays_so(tmp_path: Path) -> None:
    printed(*COMMAND, "--home", tmp_path / "home")
    assert list(tmp_path.iterdir()) == []


def test_a_drawn_set_is_taken_from_the_cache(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = pin(SPEC, settings)
    monkeypatch.setattr("tasks.data.synthetic._write", lambda *arguments: pytest.fail("drawn again"))
    before = files_below(settings.home / "cache")
    assert dry_run(settings, "mine", "smoke", SPEC).spec == expected
    assert files_below(settings.home / "cache") == before


def test_another_experiment_and_a_running_one_are_refused(
    own_home: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = own_home(SPEC.model_copy(update={"seed": 9}), rounds=2)
    monkeypatch.setenv("FEDBENCH_S3__PREFIX", settings.s3.prefix)
    refused = fedbench(*COMMAND, "--name", "mine", "--home", settings.home)
    assert refused.exit_code == 2
    assert "# would refuse: mine: this name belongs to another experiment, which differs in: seed" in refused.stdout
    assert "error: mine: this name belongs to another experiment" in refused.stderr
    objects = FolderStore(settings.s3, settings.home)
    with pytest.raises(SpecError, match="another experiment"):
        what_happens(objects, settings, "mine", SPEC)
    with run_lock(settings.home, "mine"), pytest.raises(RunLocked, match="mine: already running on this machine"):
        what_happens(objects, settings, "mine", SPEC)


def test_the_folder_has_what_the_server_serves(own_home: Callable[..., Settings], object_store: ObjectStore) -> None:
    settings = own_home(rounds=3)
    objects, prefix = FolderStore(settings.s3, settings.home), settings.s3.prefix
    layout = FederationLayout(prefix, "mine")
    for listed in (prefix, layout.root, layout.rounds, layout.round(1), f"{layout.rounds}000", f"{prefix}/none"):
        assert objects.list(listed) == object_store.list(listed)
    for key in objects.list(prefix):
        assert objects.get_bytes(key) == object_store.get_bytes(key)
    assert objects.get_json(f"{layout.root}none.json") is None
    assert (objects.exists(layout.spec), objects.exists(layout.rounds.rstrip("/"))) == (True, False)


def test_a_wrong_name_and_wrong_data_are_refused(tmp_path: Path) -> None:
    for words, says in (
        (("run", "smoke", "--dry-run", "--name", "a/b"), "--name: expected letters, digits"),
        (("run", "street5", "--dry-run"), "no folder is known for data set 'street'"),
        (("run", "smoke", "--dry-run", "-s", "seeed=1"), "seeed: no such field"),
    ):
        refused = fedbench(*words, "--home", tmp_path / "home")
        assert refused.exit_code == 2
        assert refused.stdout == ""
        assert says in refused.stderr
    assert not (tmp_path / "home").exists()
