"""A misspelt name of any kind is refused with the nearest one that exists: fields, kinds, choices, presets, suites."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from tasks.documents.by_type import is_model, members, tag_values
from tasks.errors import SpecError
from tasks.spec.federation import FederationSpec, flatten, load_spec, parse_spec, with_fields
from tasks.spec.nearest import did_you_mean, listed, nearest
from tasks.spec.presets import PRESETS, preset
from tasks.spec.suite import SuiteSpec, load_suite, parse_suite
from tasks.spec.suite_presets import SUITES, suite_preset

FIELDS = sorted(name for name in flatten(FederationSpec().model_dump(mode="json")) if not name.endswith(".kind"))
UNIONS = ("data", "detector", "strategy", "training.optimizer")


def misspelt(name: str) -> str:
    """Return ``name`` with its last letter doubled."""
    return name + name[-1]


def nested(path: str, value: Any) -> dict[str, Any]:
    """Return ``{"a": {"b": value}}`` for ``a.b``, with the kinds of the default specification on the way."""
    *parents, last = path.split(".")
    document: dict[str, Any] = {}
    node, like = document, FederationSpec().model_dump(mode="json")
    for parent in parents:
        like = like[parent]
        node[parent] = {name: like[name] for name in ("kind",) if name in like}
        node = node[parent]
    node[last] = value
    return document


def kind_of(path: str) -> Any:
    """Return the type of the field at ``path`` of a specification."""
    kind: Any = FederationSpec
    for name in path.split("."):
        (holder,) = (member for member in members(kind) if is_model(member))
        kind = holder.model_fields[name].annotation
    return kind


def choices(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every choice among texts in the fields of ``model`` and of the only model that a field can have."""
    for name, field in model.model_fields.items():
        kinds = members(field.annotation)
        if typing.get_origin(kinds[0]) is Literal and len(typing.get_args(kinds[0])) > 1:
            yield from ((f"{path}{name}", value) for value in typing.get_args(kinds[0]) if isinstance(value, str))
        elif len(kinds) == 1 and is_model(kinds[0]):
            yield from choices(kinds[0], f"{path}{name}.")


@pytest.mark.parametrize("path", FIELDS)
def test_the_nearest_field_is_suggested_in_files_and_options(path: str) -> None:
    wrong = misspelt(path)
    with pytest.raises(SpecError) as of_file:
        parse_spec(nested(wrong, 1), source="my.yaml")
    with pytest.raises(SpecError) as of_option:
        with_fields(FederationSpec(), {wrong: 1}, source="smoke")
    for refused, source in ((of_file, "my.yaml"), (of_option, "smoke")):
        (line,) = str(refused.value).splitlines()
        assert line.startswith(f"{source}: {wrong}: no such field; expected one of: ")
        assert line.endswith(f"; did you mean {path}?")


def test_the_nearest_group_of_fields_is_suggested() -> None:
    with pytest.raises(SpecError, match=r"trainig\.optimizer\.lr: no such field; .*; did you mean training\?$"):
        with_fields(FederationSpec(), {"trainig.optimizer.lr": 1}, source="smoke")
    with pytest.raises(SpecError, match=r"; did you mean training\.optimizer\?$"):
        with_fields(FederationSpec(), {"training.optimiser.lr": 1}, source="smoke")


@pytest.mark.parametrize(
    ("field", "kind"), [(field, kind) for field in UNIONS for kind in tag_values(kind_of(field), "kind")]
)
def test_the_nearest_kind_is_suggested(field: str, kind: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse_spec(nested(f"{field}.kind", misspelt(kind)), source="my.yaml")
    assert f"found {misspelt(kind)!r}" in str(refused.value)
    assert str(refused.value).endswith(f"; did you mean {kind}?")
    with pytest.raises(SpecError) as refused:
        with_fields(FederationSpec(), {f"{field}.kind": kind.upper()}, source="smoke")
    assert str(refused.value).endswith(f"; did you mean {kind}?")


@pytest.mark.parametrize(("field", "value"), sorted(choices(FederationSpec)))
def test_the_nearest_choice_is_suggested(field: str, value: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse_spec(nested(field, misspelt(value)), source="my.yaml")
    assert f"{field}: expected " in str(refused.value)
    assert f"; did you mean {value}?" in str(refused.value)


def test_a_field_of_another_kind_is_named_as_such_and_nothing_else_is_suggested() -> None:
    with pytest.raises(SpecError) as refused:
        parse_spec({"strategy": {"kind": "fedadagrad", "beta2": 0.9}}, source="my.yaml")
    assert str(refused.value).endswith("(of kind fedadagrad; beta2 is a field of kind fedadam, fedyogi)")


@pytest.mark.parametrize("name", PRESETS)
def test_the_nearest_preset_is_suggested(name: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as refused:
        preset(misspelt(name))
    assert str(refused.value).endswith(f"; did you mean {name}?")
    path = tmp_path / "suite.yaml"
    path.write_text(f"name: mine\nexperiments:\n- name: a\n  spec: {misspelt(name)}\n")
    with pytest.raises(SpecError) as refused:
        load_suite(path)
    assert str(refused.value).startswith(f"{path}: experiments.a: spec: {misspelt(name)}: no such preset or file")
    assert str(refused.value).endswith(f"; did you mean {name}?")


@pytest.mark.parametrize("name", SUITES)
def test_the_nearest_suite_is_suggested(name: str) -> None:
    with pytest.raises(SpecError) as refused:
        suite_preset(misspelt(name))
    assert str(refused.value).endswith(f"; did you mean {name}?")


@pytest.mark.parametrize("field", sorted(SuiteSpec.model_fields.keys() - {"version"}))
def test_the_nearest_field_of_a_suite_is_suggested(field: str) -> None:
    document = {"name": "mine", "experiments": [{"name": "a", "spec": {}}], misspelt(field): 1}
    with pytest.raises(SpecError) as refused:
        parse_suite(document, source="suite.yaml")
    assert str(refused.value).endswith(f"; did you mean {field}?")


def test_a_suites_set_suggests_too(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    text = "name: mine\nexperiments:\n- name: a\n  spec: smoke\n  set: { training.local_epoch: 2 }\n"
    path.write_text(text)
    with pytest.raises(SpecError, match=r"experiments\.a: .*; did you mean training\.local_epochs\?$"):
        load_suite(path)


def test_a_file_that_is_missing_is_not_taken_for_a_preset(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.yaml: cannot be read: No such file"):
        load_spec(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("found", "names", "expected"),
    [
        ("fedadm", ("fedavg", "fedadagrad", "fedadam"), "fedadam"),
        ("FED-ADAM", ("fedavg", "fedadam"), "fedadam"),
        ("map50-voc10", ("map50_voc10", "map50_voc07"), "map50_voc10"),
        ("lvis", ("coco", "yolo"), None),
        ("", ("coco",), None),
        (3, ("coco",), None),
        ("x", (), None),
    ],
)
def test_names_are_compared_by_their_letters(found: object, names: tuple[str, ...], expected: str | None) -> None:
    assert nearest(found, names) == expected
    assert did_you_mean(found, names, "a.") == (f"; did you mean a.{expected}?" if expected else "")


def test_long_lists_are_cut() -> None:
    names = [f"n{number}" for number in range(20)]
    assert listed(names[:3]) == "n0, n1, n2"
    assert listed(names, repr, most=2) == "'n0', 'n1', and 18 more"
