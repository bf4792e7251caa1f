"""The checks of turns on a GPU. Without one they are skipped; a few run on the CPU to try the checks themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.gpu.checks import CHECKS, Check, Skipped

TRIED = ("loss_equals_the_cpus[fcos-lite0]", "amp_computes_in_bfloat16[fcos-lite0]", "augmentation_equals_the_cpus",
         "a_loss_that_is_not_finite_is_reported_with_its_batch", "a_turn_trains[yolov3-tiny, amp=True]")  # fmt: skip


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_on_a_gpu(check: Check, tmp_path: Path) -> None:
    try:
        check.run("cuda", tmp_path)
    except Skipped as reason:
        pytest.skip(str(reason))


def named(name: str) -> Check:
    (check,) = [check for check in CHECKS if check.name == name]
    return check


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", TRIED)
def test_on_a_cpu(name: str, tmp_path: Path) -> None:
    assert named(name).anywhere
    named(name).run("cpu", tmp_path)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["of_a_method[yolov3-tiny, scaffold]", "at_several_scales[fcos-lite0]"])
def test_steps_are_watched(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, where torch notices no waiting. The check itself runs as on a GPU."""
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    named(f"the_host_waits_in_no_step_{name}").run("cpu", tmp_path)
    assert modes[:2] == ["error", "default"]
