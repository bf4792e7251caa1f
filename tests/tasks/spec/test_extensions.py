"""Kinds of other installed packages, each here a folder on the path with a module and its metadata."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.code_version import installed_code
from tasks.errors import SpecError
from tasks.spec import extensions
from tasks.spec.federation import parse_spec
from tasks.spec.strategies import FedAvgSpec, StrategySpec
from tasks.strategies.base import Strategy

ROOT = Path(__file__).resolve().parents[3]
SPEC = '''
from typing import ClassVar, Literal
from tasks.spec.strategies import StrategySpec

class OwnSpec(StrategySpec):
    """A method."""
    implementation: ClassVar[str] = "own.method:Own"
    kind: Literal["own"] = "own"
'''
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return a function that installs a package ``own`` with a module and entry points."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def clear() -> None:
        for cached in (extensions.installed, extensions.packages, installed_code):
            cached.cache_clear()
        importlib.invalidate_caches()

    def put(
        source: str, entries: str = "own = own.spec:OwnSpec", *, name: str = "own-package", version: str = "1.2"
    ) -> None:
        (tmp_path / "own").mkdir(exist_ok=True)
        (tmp_path / "own" / "__init__.py").touch()
        (tmp_path / "own" / "spec.py").write_text(source)
        metadata = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (metadata / "entry_points.txt").write_text(f"[fedbench.strategies]\n{entries}\n")
        clear()

    yield put
    for module in set(sys.modules) - before:
        if module.split(".")[0] == "own":
            del sys.modules[module]
    monkeypatch.undo()
    clear()
    extensions.load(extensions.STRATEGIES, StrategySpec, (FedAvgSpec,))  # forgets the faults


def found() -> extensions.Extensions:
    return extensions.load(extensions.STRATEGIES, StrategySpec, (FedAvgSpec,))


def fault() -> str:
    """Return the fault of the only package. Its specification is left out."""
    loaded = found()
    assert loaded.specs == ()
    (text,) = loaded.faults
    assert extensions.faults() == (text,)
    return text


def test_a_package_brings_a_kind(install: Install) -> None:
    install(SPEC)
    loaded = found()
    assert [spec.__name__ for spec in loaded.specs] == ["OwnSpec"]
    assert loaded.faults == ()


def test_kinds_are_in_order_of_their_names(install: Install) -> None:
    install(SPEC + SPEC.replace("OwnSpec", "Second").replace('"own"', '"another"'),
            "own = own.spec:OwnSpec\nanother = own.spec:Second")  # fmt: skip
    assert [spec.model_fields["kind"].default for spec in found().specs] == ["another", "own"]


@pytest.mark.parametrize(
    ("source", "entries", "expected"),
    [
        (SPEC.replace('"own"', '"fedavg"'), "fedavg = own.spec:OwnSpec", "fedbench has this kind already"),
        (SPEC, "other = own.spec:OwnSpec", 'expected the field kind: Literal["other"] = "other"'),
        (SPEC, "Own_1 = own.spec:OwnSpec", "expected a name of at most 64 small letters, digits and hyphens"),
        ("class OwnSpec: ...", "own = own.spec:OwnSpec", "expected a class with the base tasks.spec.strategies.Strate"),
        ("OwnSpec = 3", "own = own.spec:OwnSpec", "expected a class with the base tasks.spec.strategies.StrategySpec"),
        ("import not_there", "own = own.spec:OwnSpec", "ModuleNotFoundError: No module named 'not_there'"),
        ("1 / 0", "own = own.spec:OwnSpec", "ZeroDivisionError"),
        (SPEC, "own = own.spec:Missing", "AttributeError"),
        (SPEC.replace("own.method:Own", ""), "own = own.spec:OwnSpec", "expected implementation, a class variable"),
    ],
)
def test_a_faulty_package_is_left_out_with_its_name_and_what_was_expected(
    install: Install, source: str, entries: str, expected: str
) -> None:
    install(source, entries)
    text = fault()
    assert text.startswith(f"own-package 1.2: entry point {entries} of fedbench.strategies: ")
    assert expected in text


def test_of_two_packages_with_one_kind_the_first_name_has_it(install: Install) -> None:
    install(SPEC)
    install(SPEC, name="a-package", version="2")
    loaded = found()
    assert len(loaded.specs) == 1
    (text,) = loaded.faults
    assert text.startswith("own-package 1.2: ")
    assert text.endswith("expected another name, because a-package 2 has this kind already")


def test_an_unknown_kind_lists_the_known_ones_and_the_faults(install: Install) -> None:
    install("import not_there")
    found()
    with pytest.raises(SpecError) as error:
        parse_spec({"strategy": {"kind": "own"}}, source="mine.yaml")
    text = str(error.value)
    assert text.startswith("mine.yaml: strategy.kind: expected one of: 'fedavg', ")
    assert "found 'own'; a kind of another package needs that package installed here" in text
    assert "own-package 1.2: entry point own = own.spec:OwnSpec" in text


def test_an_unknown_detector_too() -> None:
    with pytest.raises(SpecError, match=r"found 'own'; a kind of another package .* group fedbench\.detectors"):
        parse_spec({"detector": {"kind": "own"}}, source="mine.yaml")


@pytest.mark.parametrize("path", ["not_there:Class", "tasks.spec.strategies:Missing"])
def test_an_implementation_that_cannot_be_imported(path: str) -> None:
    with pytest.raises(SpecError, match=f"strategy.kind own: expected {path} to be a class .* it cannot be imported"):
        extensions.implementation(path, Strategy, field="strategy.kind own")


def test_an_implementation_that_is_no_method() -> None:
    with pytest.raises(SpecError, match=r"base tasks\.strategies\.base\.Strategy, found <class .*FedAvgSpec"):
        extensions.implementation("tasks.spec.strategies:FedAvgSpec", Strategy, field="strategy.kind own")


def test_the_version_and_the_sources_of_a_package_distinguish_two_installations(
    install: Install, tmp_path: Path
) -> None:
    without = installed_code()
    install(SPEC)
    first = installed_code()
    (tmp_path / "own" / "method.py").write_text("changed = True")
    installed_code.cache_clear()
    changed = installed_code()
    (tmp_path / "own" / "method.py").unlink()
    (tmp_path / "own_package-1.2.dist-info").rename(tmp_path / "own_package-1.3.dist-info")
    (tmp_path / "own_package-1.3.dist-info" / "METADATA").write_text("Name: own-package\nVersion: 1.3\n")
    for cached in (extensions.installed, extensions.packages, installed_code):
        cached.cache_clear()
    assert len({without, first, changed, installed_code()}) == 4


def test_a_specification_in_a_new_process_can_choose_the_kind(install: Install, tmp_path: Path) -> None:
    """The union is made when the module is imported. A second, faulty package does not disturb the others."""
    install(SPEC)
    faulty = tmp_path / "faulty-0.dist-info"
    faulty.mkdir()
    (faulty / "METADATA").write_text("Name: faulty\nVersion: 0\n")
    (faulty / "entry_points.txt").write_text("[fedbench.detectors]\nbroken = not_there:Spec\n")
    script = (
        "import json, sys; from tasks.spec.federation import parse_spec; from tasks.spec import extensions\n"
        "kinds = [parse_spec({'strategy': {'kind': kind}}, source='').strategy.kind for kind in ('own', 'fedadam')]\n"
        "print(json.dumps([kinds, extensions.faults(), 'torch' in sys.modules]))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kinds, faults, torch = json.loads(done.stdout)
    assert kinds == ["own", "fedadam"]
    assert len(faults) == 1
    assert faults[0].startswith("faulty 0: entry point broken = not_there:Spec of fedbench.detectors: ")
    assert not torch
