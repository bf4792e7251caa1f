"""Partly labelled clients are described in two lines: at the start of a run, by ``show`` and by a dry run."""

from __future__ import annotations

import io
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from rich.console import Console

from flows.views.header import show_header
from flows.views.label_spaces import OWN_SCORES, label_space_lines
from flows.views.terminal import LineProgress, QuietProgress
from infra.settings import Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from tasks.detectors.registry import DETECTORS
from tasks.spec.federation import FederationSpec, parse_spec
from tasks.spec.references import local_only, twin
from tests.flows.command import fedbench

CLASSES = [f"class {number}" for number in range(1, 8)]
YOLO = ", and nothing is learned as background where the round's global model finds one with a score above 0.1 "
YOLO += "(data.unlabelled_score)"


Space = dict[str, list[str]]


def spec(space: Space | None, count: int = 5, kind: str = "yolov3-tiny", **data: Any) -> FederationSpec:
    fields = {"kind": "coco", "name": "mine", "classes": CLASSES, "clients": {"kind": "iid", "clients": count}}
    return parse_spec({"data": fields | {"label_space": space} | data, "detector": {"kind": kind}}, source="x")


SPACE = {"1": CLASSES[:1], "2": CLASSES[:3], "3": CLASSES[3:4]}


def test_clients_are_counted_by_the_number_of_their_classes() -> None:
    assert label_space_lines(spec(SPACE)) == [
        "partly labelled: 3 of 5 clients label some of the 7 classes (2 label 1 class, 1 labels 3 classes); other "
        "clients label all",
        f"unlabelled classes: the class loss of yolov3-tiny leaves them out{YOLO}",
    ]
    assert label_space_lines(spec(SPACE, unlabelled_score=0.25))[1].endswith("above 0.25 (data.unlabelled_score)")


def test_a_detector_without_the_score_has_no_line_about_it() -> None:
    rule = label_space_lines(spec(SPACE, kind="fcos-lite0"))[1]
    assert rule == "unlabelled classes: the class loss of fcos-lite0 leaves them out"


def test_the_detectors_without_the_score_are_those_that_need_no_regions() -> None:
    assert {kind for kind, path in DETECTORS.items() if not resolve_name(path).needs_unlabelled_regions} == {
        *OWN_SCORES
    }


@pytest.mark.parametrize("space", [None, {"1": CLASSES}])
def test_nothing_is_printed_where_all_clients_label_all(space: Space | None) -> None:
    assert label_space_lines(spec(space)) == []


def test_thousands_of_clients_are_two_short_lines() -> None:
    space = {str(number): CLASSES[: 1 + number % 6] for number in range(1, 3001)}
    space["1"] = CLASSES[1:]
    lines = label_space_lines(spec(space, 3000))
    assert lines[0] == "partly labelled: 3000 of 3000 clients label some of the 7 classes (1 to 6 classes each)"
    assert max(map(len, lines)) < 200


def test_only_the_clients_that_train_are_counted() -> None:
    partly = spec(SPACE)
    assert label_space_lines(local_only(partly, "4")) == []
    assert label_space_lines(local_only(partly, "2"))[0].startswith("partly labelled: 1 of 1 client labels some")
    assert label_space_lines(twin(partly))[0] == label_space_lines(partly)[0]


def test_without_names_of_classes_and_clients_only_those_of_the_label_space_are_counted() -> None:
    unread = spec(SPACE, classes=None, clients={"kind": "field", "field": "device"})
    expected = (
        "partly labelled: 3 clients label some classes (2 label 1 class, 1 labels 3 classes); other clients label all"
    )
    assert label_space_lines(unread)[0] == expected
    assert "3 clients label some of the 7 classes" in label_space_lines(unread, CLASSES)[0]


def test_a_run_begins_with_them(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    show_header(LineProgress(Console(file=stream, width=40)), "mine", spec(SPACE))
    first, *others = stream.getvalue().splitlines()
    assert "federation mine: coco" in first
    assert [line.partition("] ")[2] for line in others] == label_space_lines(spec(SPACE))
    show_header(QuietProgress(), "mine", spec(SPACE))
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("own_environment")
def test_show_prints_them(object_store: ObjectStore, command_settings: Settings) -> None:
    partly = spec(SPACE)
    layout = FederationLayout(command_settings.s3.prefix, "mine")
    object_store.put_json(layout.spec, partly.model_dump(mode="json"))
    result = fedbench("show", "mine")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[1:3] == label_space_lines(partly)


@pytest.mark.usefixtures("own_environment")
def test_a_dry_run_prints_them_with_the_classes_of_the_data(tmp_path: Path) -> None:
    small = [f"-sdata.{field}" for field in ("train_images=40", "test_images=5", "width=64", "height=64")]
    words = ("run", "smoke", *small, "-s", "data.label_space.2=[chair]", "--dry-run", "--home", tmp_path / "home")
    result = fedbench(*words)
    assert result.exit_code == 0, result.output
    expected = (
        "# partly labelled: 1 of 5 clients labels some of the 7 classes (1 labels 1 class); other clients label all"
    )
    assert expected in result.stdout.splitlines()
    assert f"# unlabelled classes: the class loss of yolov3-tiny leaves them out{YOLO}" in result.stdout.splitlines()
