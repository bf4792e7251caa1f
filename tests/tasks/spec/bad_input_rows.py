"""Rows of the table of bad inputs (``test_bad_inputs.py``): each makes the real code refuse one input."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from flows.cli.app import main
from flows.coordinator.preflight import claim_name
from flows.stored.runs import read_history
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from infra.store.weights import WeightStore
from tasks.data.street import load_street
from tasks.detectors.registry import build_detector
from tasks.detectors.state import check_finite, load_state, state_of
from tasks.errors import ClientError, DataError, SpecError
from tasks.spec.base import RECORD_VERSION, parse
from tasks.spec.detector import YoloV3TinySpec
from tasks.spec.federation import FederationSpec, parse_spec
from tasks.strategies.mean import WeightedMean
from tasks.strategies.updates import reference_of


@dataclass
class Bench:
    """The means of a row: its own folder, the environment, a real store and a tiny valid data set."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    store_home: Path
    objects: ObjectStore
    street: Path
    name: str

    def layout(self) -> FederationLayout:
        return FederationLayout("bad-inputs", self.name)


@dataclass(frozen=True)
class Exit:
    """A command's exit code. A row expects it instead of an error's class."""

    code: int


Row = tuple[Callable[[Bench], Any], type[Exception] | Exit, tuple[str, ...]]
REFUSED, FAILED = Exit(2), Exit(1)


def spec(document: Any, *says: str) -> Row:
    return lambda bench: parse_spec(document, source="my.yaml"), SpecError, ("my.yaml: ", *says)


def command(*arguments: str, says: tuple[str, ...], ends: Exit = REFUSED, home: str = "", **variables: str) -> Row:
    """Return a row that runs ``fedbench`` with ``arguments``.

    ``{folder}`` in an argument or variable is the row's folder, ``{street}`` its copy of the data set.
    """

    def run(bench: Bench) -> None:
        street = bench.folder / "street"
        shutil.copytree(bench.street, street)
        places = {"folder": bench.folder, "street": street}
        bench.monkeypatch.setenv("FEDBENCH_HOME", home or str(bench.folder / "home"))
        if home == "store":
            bench.monkeypatch.setenv("FEDBENCH_HOME", str(bench.store_home))
        for name, value in variables.items():
            bench.monkeypatch.setenv(f"FEDBENCH_{name}", value.format(**places))
        bench.monkeypatch.setattr(sys, "argv", ["fedbench", *(item.format(**places) for item in arguments)])
        main()

    return run, ends, says


def file(content: str | bytes, *says: str, name: str = "my.yaml") -> Row:
    """Return a row that calls ``fedbench run`` on a file with this content."""
    run, ends, _ = command("run", f"{{folder}}/{name}", says=())

    def write(bench: Bench) -> None:
        (bench.folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        run(bench)

    return write, ends, (name, *says)


def settings(content: str, *says: str) -> Row:
    """Return a row that calls ``fedbench list`` with this settings file."""
    run, ends, _ = command("list", says=(), SETTINGS="{folder}/settings.yaml")

    def write(bench: Bench) -> None:
        (bench.folder / "settings.yaml").write_text(content)
        run(bench)

    return write, ends, says


def setting(value: str, *says: str) -> Row:
    """Return a row that calls ``fedbench run`` with ``--set value``."""
    return command("run", "smoke", "--set", value, says=says)


def data(damage: Callable[[Path], Any], *says: str) -> Row:
    def load(bench: Bench) -> None:
        street = bench.folder / "street"
        shutil.copytree(bench.street, street)
        damage(street)
        load_street(street, 5, name="street", expected_digest=None)

    return load, DataError, says


def labels(file: str, change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Path], None]:
    def damage(street: Path) -> None:
        path = street / file
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return damage


State = dict[str, torch.Tensor]
GOOD: State = {"conv.weight": torch.ones(2, 3), "norm.num_batches_tracked": torch.tensor(4)}


def update(state: State | bytes, *says: str, again: bool = False) -> Row:
    """Return a row that aggregates client 3's update in a round whose model is like GOOD."""

    def accumulate(bench: Bench) -> None:
        path = bench.folder / "update.safetensors"
        if isinstance(state, bytes):
            path.write_bytes(state)
        else:
            save_file(state, path)
        average = WeightedMean(reference_of(GOOD))
        for _ in range(2 if again else 1):
            average.accumulate(path, 10, client="3")

    return accumulate, ClientError, ("client 3", *says)


def stored(key: str, content: Any, error: type[Exception], *says: str, names: str | None = None) -> Row:
    """Return a row that reads ``content`` (JSON or text) at ``key`` of a federation's store.

    The message must contain ``names``, or the key.
    """

    def read(bench: Bench) -> None:
        layout = bench.layout()
        text = content if isinstance(content, str) else json.dumps(content)
        bench.objects.put_bytes(layout.store if key == "store.json" else f"{layout.root}{key}", text.encode())
        try:
            claim_name(bench.objects, layout, FederationSpec(max_rounds=5))
            read_history(bench.objects, layout)
        finally:
            bench.objects.delete([layout.store])

    return read, error, (names or key, *says)


def record(kind: Any, document: dict[str, Any], *says: str) -> Row:
    return lambda bench: parse(kind, document, source="a/plan.json", newest=RECORD_VERSION), SpecError, says


def missing_weights(bench: Bench) -> None:
    cache = WeightStore(bench.objects, bench.folder / "cache", 10)
    cache.get(f"{bench.layout().root}none.safetensors", "a" * 64, 10)


def other_weights(bench: Bench) -> None:
    cache = WeightStore(bench.objects, bench.folder / "cache", 10)
    bench.objects.put_bytes(f"{bench.layout().root}swapped.safetensors", b"other")
    cache.get(f"{bench.layout().root}swapped.safetensors", "a" * 64, 5)


def other_detector(bench: Bench) -> None:
    save_file(state_of(build_detector(YoloV3TinySpec(), 7, seed=1)), bench.folder / "global.safetensors")
    load_state(build_detector(YoloV3TinySpec(), 3, seed=1), bench.folder / "global.safetensors")


def diverged(bench: Bench) -> None:
    check_finite({"conv.weight": torch.tensor([1.0, float("inf")])}, client="3")


def another_run(bench: Bench) -> None:
    layout = bench.layout()
    bench.objects.put_json(layout.spec, FederationSpec(max_rounds=9).model_dump(mode="json"))
    claim_name(bench.objects, layout, FederationSpec(max_rounds=5))
