"""The benchmark for GPUs, whole, at a tiny size on the CPU: its order, and that a line is written for every figure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.bench_gpu import TINY, main

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
def test_every_figure_has_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "lines.jsonl"
    code = main(["--device", "cpu", "--tiny", "--out", str(out)])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert out.read_text() == printed
    lines = [json.loads(line) for line in printed.splitlines()]
    first = [(line["figure"], line["amp"]) for line in lines if line.get("detector") == "yolov3"]
    assert first[:4] == [("turn", True), ("bare", True), ("recipe", True), ("ratios", True)]
    for amp in (True, False):
        for detector in TINY.detectors:
            of_both = [line for line in lines if (line.get("detector"), line.get("amp")) == (detector, amp)]
            found = {line["figure"] for line in of_both}
            assert {"turn", "bare", "recipe", "ratios"} <= found
            assert ("torchvision" in found) is detector.startswith("faster")
    rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
    assert min(rates) > 0
    assert sum(line.get("channels_last", False) for line in lines) == 3
    assert {"decode", "round", "evaluation", "end"} <= {line["figure"] for line in lines}
    assert lines[-2]["compiled"]
    assert (lines[0]["held"], lines[-1]["failures"], lines[-1]["lines"]) == (True, 0, len(lines))


def test_no_figure_starts_after_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu", "--tiny", "--seconds", "0"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["figure"] for line in lines] == ["decode", "end"]


def test_a_missing_folder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--device", "cpu"])
    assert "--street: expected the folder of Federated Street" in capsys.readouterr().err
