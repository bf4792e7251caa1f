"""A federated method that cannot run is refused with the fields, and with options that make it run."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.cli import runs
from flows.cli.shared import field_values
from flows.commands.arguments import choose_spec
from flows.commands.run_name import NamedRun
from tasks.documents.by_type import members
from tasks.errors import SpecError
from tasks.spec.detector import DetectorSpec
from tasks.spec.federation import FederationSpec, parse_spec
from tasks.spec.presets import PRESETS
from tasks.spec.strategies import AnyStrategy
from tasks.spec.suite import load_suite
from tests.flows.command import fedbench
from tests.tasks.spec.bad_method_rows import Row, by_file, by_form, by_options, by_suite

KINDS: dict[str, type[Any]] = {kind.model_fields["kind"].default: kind for kind in members(AnyStrategy)}
SGD = {"kind": "sgd", "momentum": 0}
MOMENTUM = {"kind": "sgd", "momentum": 0.9}
NESTEROV = {"kind": "sgd", "momentum": 0.9, "nesterov": True}
UNKNOWN = ("strategy.kind: expected one of: 'fedavg', 'fedprox', ", "'fedsam'")
RUNS = "it runs with"

TABLE: dict[str, Row] = {
    # The kind.
    "file: unknown kind": by_file({"kind": "fedadamm"}, *UNKNOWN, "found 'fedadamm'"),
    "file: kind in capitals": by_file({"kind": "FedAvg"}, *UNKNOWN, "found 'FedAvg'"),
    "file: no kind": by_file({"mu": 1}, *UNKNOWN, "found none"),
    "file: null as kind": by_file({"kind": None}, *UNKNOWN, "found 'None'"),
    "file: a word": by_file("fedprox", "strategy: expected a mapping of fields, found 'fedprox'; set strategy.kind"),
    "file: a list": by_file([{"kind": "fedprox"}], "strategy: expected a mapping of fields, found [{'kind'"),
    "file: null": by_file(None, "strategy: expected a mapping of fields, found None"),
    "options: unknown kind": by_options("strategy.kind=adam", says=(*UNKNOWN, "found 'adam'")),
    "options: kind as a list": by_options("strategy.kind=[fedavg]", says=(*UNKNOWN, "found")),
    "options: a word": by_options("strategy=fedprox", says=("found 'fedprox'; set strategy.kind",)),
    "suite: unknown kind": by_suite({"strategy.kind": "fedopt"}, *UNKNOWN, "found 'fedopt'"),
    "form: unknown kind": by_form({"strategy": {"kind": "fedopt"}}, "spec.strategy: ", "'fedopt'", "'fedavg', "),
    # Fields of other kinds, and of none.
    "file: another kind's field": by_file(
        {"kind": "fedadam", "mu": 0.1},
        "strategy.mu: no such field; expected one of: kind, weights, server_lr, beta1, beta2, tau",
        "(of kind fedadam; mu is a field of kind fedprox)",
    ),
    "file: a field of several kinds": by_file(
        {"kind": "fedprox", "server_lr": 0.1}, "strategy.server_lr: no such field",
        "(of kind fedprox; server_lr is a field of kind fedavgm, fedadagrad, fedadam, fedyogi, scaffold)",
    ),
    "file: a field of no kind": by_file(
        {"kind": "fedprox", "lambda": 0.1}, "strategy.lambda: no such field; expected one of: kind, weights, mu",
    ),
    "file: weights of a uniform method": by_file(
        {"kind": "scaffold", "weights": "images"}, "strategy.weights: no such field; expected one of: kind, server_lr",
        "(of kind scaffold; weights is a field of kind fedavg, ", training={"optimizer": SGD, "clip_norm": None},
    ),
    "options: a field without its kind": by_options(
        "strategy.mu=0.1", says=("strategy.mu: no such field", "(of kind fedavg; mu is a field of kind fedprox)")
    ),
    "options: another kind's field": by_options(
        "strategy.rho=0.1", "strategy.kind=feddyn", says=("(of kind feddyn; rho is a field of kind fedsam)",)
    ),
    "suite: another kind's field": by_suite(
        {"strategy.kind": "fedexp", "strategy.tau": 0.1},
        "(of kind fedexp; tau is a field of kind fedadagrad, fedadam, fedyogi)",
    ),
    "form: another kind's field": by_form({"strategy": {"kind": "fedexp", "tau": 1}}, "spec.strategy.fedexp.tau: "),
    # Values of one field.
    "file: weights by boxes": by_file(
        {"kind": "fedavg", "weights": "boxes"},
        "strategy.weights: expected 'images', 'uniform' or 'objects', found 'boxes'",
    ),
    "file: a negative mu": by_file({"kind": "fedprox", "mu": -1}, "strategy.mu: expected at least 0, found -1"),
    "file: mu not a number": by_file({"kind": "fedprox", "mu": float("nan")}, "strategy.mu: expected a finite number"),
    "file: mu in words": by_file({"kind": "fedprox", "mu": "some"}, "strategy.mu: expected a number, found 'some'"),
    "file: mu true": by_file({"kind": "fedprox", "mu": True}, "strategy.mu: expected a number, found True"),
    "file: mu null": by_file({"kind": "fedprox", "mu": None}, "strategy.mu: expected a number, found None"),
    "file: a momentum of one": by_file(
        {"kind": "fedavgm", "momentum": 1}, "strategy.momentum: expected less than 1, found 1"
    ),
    "file: no server step": by_file(
        {"kind": "fedavgm", "server_lr": 0}, "strategy.server_lr: expected more than 0, found 0"
    ),
    "file: infinite server step": by_file(
        {"kind": "fedyogi", "server_lr": float("inf")}, "strategy.server_lr: expected a finite number, found inf"
    ),
    "file: beta2 of one": by_file({"kind": "fedadam", "beta2": 1.0}, "strategy.beta2: expected less than 1, found 1"),
    "file: tau of zero": by_file({"kind": "fedadagrad", "tau": 0}, "strategy.tau: expected more than 0, found 0"),
    "file: beta2 of Adagrad": by_file(
        {"kind": "fedadagrad", "beta2": 0.9}, "(of kind fedadagrad; beta2 is a field of kind fedadam, fedyogi)"
    ),
    "file: alpha of zero": by_file({"kind": "feddyn", "alpha": 0}, "strategy.alpha: expected more than 0, found 0"),
    "file: a negative epsilon": by_file({"kind": "fedexp", "epsilon": -1}, "strategy.epsilon: expected at least 0"),
    "file: a huge rho": by_file({"kind": "fedsam", "rho": 1e7}, "strategy.rho: expected at most 1e+06, found"),
    "options: NaN": by_options(
        "strategy.kind=fedadam", "strategy.tau=nan", says=("strategy.tau: expected a finite number, found 'nan'",)
    ),
    "options: a list": by_options("strategy.kind=fedsam", "strategy.rho=[1]", says=("strategy.rho: expected a num",)),
    "options: a field twice": by_options(
        "strategy.kind=fedsam", "strategy.kind=fedexp", says=("expected each field once, found strategy.kind twice",)
    ),
    "options: deeper": by_options("strategy.mu.x=1", says=("strategy.mu.x: no such field; expected one of: kind",)),
    "suite: range": by_suite({"strategy.kind": "feddyn", "strategy.alpha": -1}, "strategy.alpha: expected more than 0"),
    "form: range": by_form({"strategy": {"kind": "fedadam", "beta1": 3}}, "spec.strategy.fedadam.beta1: "),
    # Rules about the optimiser and clipping.
    "file: SCAFFOLD with AdamW": by_file(
        {"kind": "scaffold"}, "strategy.kind scaffold: expected SGD without momentum and without clipping",
        "found training.optimizer.kind adamw, training.clip_norm 10", RUNS,
        "-s training.optimizer.kind=sgd -s training.optimizer.momentum=0 -s training.clip_norm=null",
    ),
    "file: SCAFFOLD with Adam": by_file(
        {"kind": "scaffold"}, "found training.optimizer.kind adam;", RUNS,
        training={"optimizer": {"kind": "adam"}, "clip_norm": None},
    ),
    "file: SCAFFOLD with momentum": by_file(
        {"kind": "scaffold"}, "found training.optimizer.momentum 0.9;", f"{RUNS} -s training.optimizer.momentum=0",
        training={"optimizer": MOMENTUM, "clip_norm": None},
    ),
    "file: SCAFFOLD with Nesterov": by_file(
        {"kind": "scaffold"}, "found training.optimizer.momentum 0.9, training.optimizer.nesterov true;",
        f"{RUNS} -s training.optimizer.momentum=0 -s training.optimizer.nesterov=false",
        training={"optimizer": NESTEROV, "clip_norm": None},
    ),
    "file: SCAFFOLD with clipping": by_file(
        {"kind": "scaffold"}, "found training.clip_norm 3;", f"{RUNS} -s training.clip_norm=null",
        training={"optimizer": SGD, "clip_norm": 3},
    ),
    "file: FedNova with AdamW": by_file(
        {"kind": "fednova"}, "strategy.kind fednova: expected SGD without Nesterov's momentum",
        "found training.optimizer.kind adamw;", f"{RUNS} -s training.optimizer.kind=sgd",
    ),
    "file: FedNova with Nesterov": by_file(
        {"kind": "fednova"}, "found training.optimizer.nesterov true;", f"{RUNS} -s training.optimizer.nesterov=false",
        training={"optimizer": NESTEROV},
    ),
    "options: SCAFFOLD on a preset": by_options("strategy.kind=scaffold", says=("strategy.kind scaffold: ", RUNS)),
    "options: FedNova on a preset": by_options("strategy.kind=fednova", says=("strategy.kind fednova: ", RUNS)),
    "options: SCAFFOLD of the paper's preset": by_options(
        "strategy.kind=scaffold", says=("found training.optimizer.momentum 0.9, training.clip_norm 10",),
        preset="street5_faster_rcnn",
    ),
    "suite: SCAFFOLD": by_suite({"strategy.kind": "scaffold"}, "strategy.kind scaffold: ", RUNS),
    "form: SCAFFOLD": by_form({"strategy": {"kind": "scaffold"}}, "strategy.kind scaffold: ", RUNS),
    # Several faults at once.
    "file: three fields": by_file(
        {"kind": "fedadam", "beta1": 1, "tau": -1, "mu": 2}, "strategy.beta1: expected less than 1, found 1\n",
        "strategy.tau: expected more than 0, found -1\n", "strategy.mu: no such field", "mu is a field of kind fedprox",
    ),
    "file: fields of two groups": by_file(
        {"kind": "fedprox", "mu": -1}, "training.batch_size: expected at least 1, found 0\n",
        "strategy.mu: expected at least 0, found -1", training={"batch_size": 0},
    ),
    "options: three fields": by_options(
        "strategy.kind=fedyogi", "strategy.beta1=-1", "strategy.server_lr=x", "seed=-1",
        says=("seed: expected at least 0", "strategy.server_lr: expected a number", "strategy.beta1: expected at le"),
    ),
    "form: two fields": by_form(
        {"strategy": {"kind": "fedprox", "mu": -1, "rho": 1}},
        "spec.strategy.fedprox.mu: ", "spec.strategy.fedprox.rho: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", TABLE)
def test_a_bad_method_is_refused_with_the_reason(row: str, tmp_path: Path) -> None:
    refuse, says = TABLE[row]
    text = refuse(tmp_path)
    assert "Traceback" not in text
    for part in says:
        assert part in text, text


def test_the_table_is_long_enough() -> None:
    assert len(TABLE) >= 40
    for way, least in (("file", 20), ("options", 10), ("suite", 4), ("form", 5)):
        assert sum(name.startswith(f"{way}: ") for name in TABLE) >= least, way


# The options that refusals print.


def printed_options(refusal: str) -> list[str]:
    """Return the options of all lines of a refusal. Each line must print some."""
    found: list[str] = []
    for line in refusal.splitlines():
        match = re.search(r"; it runs with ((?:-s \S+ ?)+)$", line)
        assert match is not None, line
        found += shlex.split(match[1])
    return found


def accepted(monkeypatch: pytest.MonkeyPatch, what: str | Path, *options: str) -> FederationSpec:
    """Return the specification that ``fedbench run`` reads from ``what`` and ``options``, without running it."""
    read: list[FederationSpec] = []
    with monkeypatch.context() as patch:
        patch.setattr(runs, "machine_settings", lambda *_: None)
        patch.setattr(runs, "_named", lambda base, spec, *_: (NamedRun(base, spec), []))
        patch.setattr(runs, "_run", lambda name, spec, *_, **options: read.append(spec))
        result = fedbench("run", what, *options)
    assert result.exit_code == 0, (what, options, result.output)
    return read[0]


def experiments() -> Iterator[dict[str, Any]]:
    """Yield the fields of a specification for each method, optimiser, clipping, detector and partial sums."""
    optimizers = ({"kind": "adamw"}, {"kind": "adam"}, SGD, MOMENTUM, NESTEROV)
    detectors = [detector.model_fields["kind"].default for detector in members(DetectorSpec)]
    for kind in KINDS:
        for optimizer, clip_norm, sums in itertools.product(optimizers, (10.0, None), (False, True)):
            yield {
                "strategy": {"kind": kind},
                "training": {"optimizer": optimizer, "clip_norm": clip_norm},
                "participation": {"partial_sums": sums, "shards": 2},
            }
        for detector in detectors:
            yield {"strategy": {"kind": kind}, "detector": {"kind": detector}}


def test_each_refusal_prints_options_that_make_the_run_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: dict[str, int] = {}
    tried: set[tuple[str, ...]] = set()
    for document in experiments():
        try:
            parse_spec(document, source="my.yaml")
        except SpecError as error:
            kind, path = document["strategy"]["kind"], tmp_path / "my.yaml"
            path.write_text(yaml.safe_dump(document))
            options = printed_options(str(error))
            if (kind, *options) in tried:  # the same without the command, which takes longer
                spec = choose_spec(str(path), field_values(options[1::2]))[1]
            else:
                spec = accepted(monkeypatch, path, *options)
            tried.add((kind, *options))
            assert spec.strategy == KINDS[kind](), document
            refused[kind] = refused.get(kind, 0) + 1
    assert refused["scaffold"] >= 18
    assert refused["fednova"] >= 8
    assert not {"fedavg", "fedprox", "fedadam", "fedsam"} & refused.keys()


@pytest.mark.parametrize("preset", PRESETS)
def test_each_method_runs_on_each_preset_or_says_with_which_options(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, spec in KINDS.items():
        options = ["-s", f"strategy.kind={kind}"]
        try:
            found = choose_spec(preset, {"strategy.kind": kind})[1]
        except SpecError as error:
            found = accepted(monkeypatch, preset, *options, *printed_options(str(error)))
        assert found.strategy == spec()


@pytest.mark.parametrize("base", ["street5_laptop", "base.yaml", {"strategy": {"kind": "scaffold"}}])
def test_the_options_of_a_refusal_are_fields_of_a_suite_too(base: Any, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("strategy: {kind: scaffold}\n")
    experiment = {"name": "a", "spec": base, "set": {"strategy.kind": "scaffold"}}
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "experiments": [experiment]}))
    with pytest.raises(SpecError) as refused:
        load_suite(path)
    for word in printed_options(str(refused.value))[1::2]:
        name, _, value = word.partition("=")
        experiment["set"][name] = yaml.safe_load(value)
    path.write_text(yaml.safe_dump({"name": "mine", "experiments": [experiment]}))
    assert load_suite(path).experiments[0].spec.strategy.kind == "scaffold"


def test_a_kind_and_its_fields_may_come_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    kind, rate = ("-s", "strategy.kind=fedadam"), ("-s", "strategy.server_lr=0.03")
    first, second = (accepted(monkeypatch, "street5_laptop", *options) for options in ((*kind, *rate), (*rate, *kind)))
    assert first == second
    assert first.strategy.label == "fedadam (server_lr 0.03)"
