"""Files of specifications and suites: how plain words are read, repeated keys, and the round trip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.errors import SpecError
from tasks.spec.clients import ByList
from tasks.spec.data import Coco, SyntheticStreet
from tasks.spec.federation import FederationSpec, load_spec, parse_spec, with_fields
from tasks.spec.participation import Participation
from tasks.spec.presets import PRESETS, preset
from tasks.spec.references import twin
from tasks.spec.suite import load_suite, parse_suite
from tasks.spec.suite_presets import SUITES, suite_preset
from tasks.spec.training import AdamW, Schedule, Sgd, TrainingSpec

# Words that YAML 1.1, YAML 1.2 or one of their readers does not read as text.
WORDS = [
    "010", "000010", "08", "0", "12", "1e3", "1e-05", "0o17", "0b1", "0x1F", "1.5", "2026-01-02",
    "yes", "no", "on", "off", "y", "N", "true", "False", "null", "Null",
]  # fmt: skip


def spec_of(tmp_path: Path, text: str) -> FederationSpec:
    (tmp_path / "my.yaml").write_text(text, encoding="utf-8")
    return load_spec(tmp_path / "my.yaml")


@pytest.mark.parametrize("word", WORDS)
def test_a_text_field_keeps_the_word_as_written(word: str, tmp_path: Path) -> None:
    data = f"kind: coco, name: mine, classes: [{word}, '{word}x']"
    spec = spec_of(tmp_path, f"data: {{{data}}}\nparticipation:\n  clients:\n  - {word}\n")
    assert isinstance(spec.data, Coco)
    assert (spec.data.classes, spec.participation.clients) == ((word, f"{word}x"), (word,))
    pooled = spec_of(tmp_path, f"data: {{{data}, pooled: true, pooled_devices: [{word}, a]}}\n")
    assert pooled.data.pooled_devices == (word, "a")


def test_null_is_not_read_as_text_in_an_optional_field(tmp_path: Path) -> None:
    text = "data: {kind: coco, name: mine, local_only: null, digest: ~}\nparticipation: {clients: null, shards: ~}\n"
    spec = spec_of(tmp_path, text)
    assert isinstance(spec.data, Coco)
    assert (spec.data.local_only, spec.data.digest, spec.participation.clients) == (None, None, None)


AMBIGUOUS = {
    "seed: 010": "line 1: seed: 010 has a leading zero: it is 8 in YAML 1.1 and 10 in YAML 1.2; expected quotes where",
    "seed: 5\nmax_rounds: 1_000": "line 2: max_rounds: 1_000 is 1000 in YAML 1.1 and a text in YAML 1.2; expected",
    "target_map: 00.5": "line 1: target_map: 00.5 has a leading zero: it is 0.5 in YAML 1.1 and 0.5 in YAML 1.2",
    "version: 01": "line 1: version: 01 has a leading zero",
    "data:\n  kind: federated-street\n  split: 0o5": "line 3: data.split: 0o5 is a text in YAML 1.1 and 5 in YAML 1.2",
    "data: {kind: coco, name: a, pooled: no}": "line 1: data.pooled: no is false in YAML 1.1 and a text in YAML 1.2",
    "data:\n  kind: coco\n  name: a\n  clients:\n    kind: size\n    clients: 2\n    shares:\n    - 1\n    - 1:30":
        "line 9: data.clients.shares.1: 1:30 is 90 in YAML 1.1 and a text in YAML 1.2",
    "detector: {kind: yolov3, width: 0x_60}": "line 1: detector.width: 0x_60 is 96 in YAML 1.1 and a text in YAML 1.2",
    "training: {optimizer: {kind: adamw, betas: [.9, -.9]}}": "line 1: training.optimizer.betas.1: -.9 is a text",
    "training:\n  multi_scale: [64, 0b1000000]": "line 2: training.multi_scale.1: 0b1000000 is 64 in YAML 1.1",
    "participation: {max_load: 2026-01-02}": "line 1: participation.max_load: 2026-01-02 is a date in YAML 1.1",
}  # fmt: skip


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_an_ambiguous_word_is_refused_with_file_and_line(text: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        spec_of(tmp_path, text + "\n")
    assert str(caught.value).startswith(f"{tmp_path / 'my.yaml'}: {AMBIGUOUS[text]}")


def test_all_ambiguous_words_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        spec_of(tmp_path, "seed: 010\nparticipation: {check_load: off}\n")
    assert [line.split(": ")[1:3] for line in str(caught.value).splitlines()] == [
        ["line 1", "seed"],
        ["line 2", "participation.check_load"],
    ]


TWICE = {
    "training:\n  batch_size: 4\nmax_rounds: 7\ntraining: {}\n": "training: .* twice on lines 1 and 4",
    "training:\n  batch_size: 4\n  batch_size: 4\n": "training.batch_size: .* twice on lines 2 and 3",
    '{"seed": 1,\n"seed": 1}': "seed: .* twice on lines 1 and 2",
}


@pytest.mark.parametrize("text", TWICE)
def test_a_repeated_key_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=rf"my\.yaml: {TWICE[text]}$"):
        spec_of(tmp_path, text)


SUITE = "name: test\nexperiments:\n- name: 010\n  {}\n"
WRONG_SUITES = {
    "spec: {seed: 010}": r"suite\.yaml: line 4: (experiments\.0\.spec\.)?seed: 010 has a leading zero",
    "set: {seed: 010}": r"suite\.yaml: line 4: seed: 010 has a leading zero",
    "seeds: [1, 02]\n  spec: {}": r"suite\.yaml: line 4: experiments\.0\.seeds\.1: 02 has a leading zero",
    "spec: {}\n  spec: {}": r"suite\.yaml: experiments\.0\.spec: .* twice on lines 4 and 5",
    "set: {seed: 1, seed: 2}": r"suite\.yaml: experiments\.0\.set\.seed: .* twice on line 4",
}


@pytest.mark.parametrize("text", WRONG_SUITES)
def test_suites_refuse_ambiguous_words_and_repeated_keys(text: str, tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE.format(text))
    with pytest.raises(SpecError, match=WRONG_SUITES[text]):
        load_suite(tmp_path / "suite.yaml")


def test_a_suite_of_plain_words_is_read(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE.format("spec: ~\n  set: {participation.clients: [1, 2], seed: 7}"))
    (experiment,) = load_suite(tmp_path / "suite.yaml").experiments
    assert (experiment.name, experiment.spec.participation.clients, experiment.spec.seed) == ("010", ("1", "2"), 7)


BOOLEANS: list[dict[str, Any]] = [
    {"seed": True}, {"max_rounds": True}, {"patience": True}, {"target_map": True}, {"version": True},
    {"training": {"clip_norm": True}}, {"training": {"optimizer": {"kind": "sgd", "momentum": False}}},
    {"training": {"optimizer": {"kind": "adam", "betas": [False, 0.5]}}}, {"training": {"multi_scale": [64, True]}},
    {"detector": {"kind": "yolov3-tiny", "masks": [[False, 1, 2], [3, 4, 5]]}},
    {"data": {"kind": "coco", "name": "a", "clients": {"kind": "size", "clients": 1, "shares": [True]}}},
]  # fmt: skip


@pytest.mark.parametrize("document", BOOLEANS, ids=str)
def test_true_is_no_number(document: dict[str, Any], tmp_path: Path) -> None:
    for text in (json.dumps(document), yaml.safe_dump(document)):
        with pytest.raises(SpecError, match=r"my\.yaml: .*: expected .*number.*, found (True|False)"):
            spec_of(tmp_path, text)


def test_true_is_no_number_in_suites_and_parameters() -> None:
    with pytest.raises(SpecError, match=r"x: experiments\.0\.seeds\.0: expected a whole number, found True"):
        parse_suite({"experiments": [{"name": "a", "spec": {}, "seeds": [True]}]}, source="x")
    with pytest.raises(SpecError, match=r"x: experiments\.0\.spec\.version: expected a whole number, found True"):
        parse_suite({"experiments": [{"name": "a", "spec": {"version": True}}]}, source="x")
    with pytest.raises(ValidationError, match="valid integer"):  # Prefect reads a flow's parameter like this
        FederationSpec.model_validate_json('{"seed": true}')


ID = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True) | st.sampled_from(WORDS)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8) | st.sampled_from(WORDS)
PART = st.floats(0, 1, exclude_min=True)
SPECS = st.builds(
    FederationSpec,
    seed=st.integers(0, 2**32 - 1),
    max_rounds=st.integers(1, 100_000),
    target_map=st.none() | PART,
    data=st.builds(
        Coco,
        name=st.from_regex(r"[a-z0-9][a-z0-9-]{0,8}", fullmatch=True) | st.sampled_from(["010", "no", "1e3", "null"]),
        classes=st.none() | st.lists(TEXT, min_size=1, max_size=4, unique=True).map(tuple),
        drop_duplicate_objects=st.booleans(),
        clients=st.builds(ByList, file=ID),
        local_only=st.none() | ID,
    )
    | st.builds(SyntheticStreet, seed=st.integers(0, 99)),
    training=st.builds(
        TrainingSpec,
        optimizer=st.builds(AdamW, lr=PART, weight_decay=st.floats(0, 1))
        | st.builds(Sgd, lr=PART, nesterov=st.booleans()),
        schedule=st.builds(Schedule, floor=st.floats(0, 1)),
        clip_norm=st.none() | st.floats(0, 1e9, exclude_min=True),
        threads=st.integers(1, 64),
    ),
    participation=st.builds(Participation, wake_up_deadline=st.floats(0, 1e9, exclude_min=True)),
)  # fmt: skip


@settings(max_examples=40, deadline=None)  # each example reads several files
@given(SPECS, st.none() | st.lists(ID, min_size=1, max_size=3, unique=True))
def test_a_written_specification_is_read_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, spec: FederationSpec, clients: list[str] | None
) -> None:
    if clients is not None and spec.data.devices is None:
        spec = with_fields(spec, {"participation.clients": clients}, source="x")
    folder = tmp_path_factory.getbasetemp()
    document = spec.model_dump(mode="json")
    written = spec.to_yaml()
    for name, text in {
        "block.yaml": written,
        "flow.yaml": yaml.safe_dump(document, default_flow_style=True, width=60),
        "dump.json": json.dumps(document),
        "store.json": json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False),
    }.items():
        (folder / name).write_text(text, encoding="utf-8", newline="")
        again = load_spec(folder / name)
        assert (again, again.digest) == (spec, spec.digest), name
    assert parse_spec(yaml.safe_load(written), source="as before") == spec


@pytest.mark.parametrize("name", PRESETS)
def test_presets_and_their_twins_are_read_as_before(name: str, tmp_path: Path) -> None:
    for spec in (preset(name), twin(preset(name))):
        for text in (spec.to_yaml(), json.dumps(spec.model_dump(mode="json"))):
            assert spec_of(tmp_path, text) == parse_spec(yaml.safe_load(text), source="as before") == spec


@pytest.mark.parametrize("name", SUITES)
def test_suites_are_read_from_their_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(suite_preset(name).to_yaml())
    assert load_suite(tmp_path / "suite.yaml") == suite_preset(name)


def test_files_of_the_repository_are_read() -> None:
    root = Path(__file__).resolve().parents[3]
    path = root / "tests/benchmarks/street5_four_rounds.yaml"
    assert load_spec(path) == parse_spec(yaml.safe_load(path.read_text()), source="as before")
