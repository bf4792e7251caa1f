"""torchvision's checkpoints as initial weights: tensors that are loaded or drawn, refused files, and downloads."""

from __future__ import annotations

import functools
import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import MobileNet_V3_Large_Weights, ResNet50_Weights, VGG16_Weights, mobilenet_v3_large, resnet50
from torchvision.models.detection import (
    FasterRCNN_MobileNet_V3_Large_320_FPN_Weights,
    FasterRCNN_ResNet50_FPN_Weights,
)

from flows.coordinator.preflight import pin_weights, require_weights
from infra.settings import Settings
from tasks.detectors import weight_file
from tasks.detectors.initial import initial_detector
from tasks.detectors.torchvision_file import load_checkpoint
from tasks.detectors.weight_file import HUB, HUB_FILES, PUBLISHED_SHA256
from tasks.errors import DataError
from tasks.models.card import licence_notes
from tasks.spec.federation import FederationSpec
from tests.tasks.detectors.tiny_detectors import MOBILE, RESNET, VGG, built, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

State = dict[str, Tensor]
FPN = ("inner_blocks", "layer_blocks")


def from_file(kind: str = MOBILE, **fields: Any) -> Any:
    return tiny(kind, weights={"kind": "torchvision", "name": "a.pth"}, **fields)


def saved(path: Path, state: State) -> Path:
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a whole detector of 90 classes, with the tensor names of torchvision's published files.

    Like those files it has no counts of batches.
    """
    state = {}
    for name, tensor in built(from_file(), classes=90, seed=9).state_dict().items():
        for part in ("rpn.head.conv", *(f"backbone.fpn.{blocks}.{n}" for blocks in FPN for n in (0, 1))):
            if name.startswith(f"{part}.0."):
                name = f"{part}.{name.rpartition('.')[2]}"
        state[name] = tensor
    assert {"rpn.head.conv.weight", "backbone.fpn.inner_blocks.0.bias"} <= state.keys()
    path = saved(tmp_path_factory.mktemp("coco") / "coco.pth", state)
    return path


def test_a_checkpoint_for_other_classes_gives_all_tensors_except_the_outputs(coco: Path) -> None:
    detector, fresh, source = built(from_file()), built(from_file()), built(from_file(), classes=90, seed=9)
    report = load_checkpoint(detector, coco)
    assert report.other_classes == 90
    assert all(name.startswith("roi_heads.box_predictor.") for name in report.drawn)
    assert len(report.drawn) == 4
    for name, tensor in detector.state_dict().items():
        origin = fresh if name in report.drawn else source
        assert torch.equal(tensor, origin.state_dict()[name]), name
    assert str(report) == (
        "coco.pth: backbone.body (262 tensors), backbone.fpn (8 tensors), rpn.head (6 tensors), roi_heads.box_head "
        "(4 tensors) loaded; roi_heads.box_predictor (4 tensors) drawn from the seed (its outputs are for 90 classes)"
    )


def test_a_checkpoint_for_the_same_number_of_classes_gives_all_tensors(coco: Path) -> None:
    detector, source = built(from_file(norm="batch-norm"), classes=90), built(from_file(), classes=90, seed=9)
    report = load_checkpoint(detector, coco)
    assert (report.drawn, report.other_classes) == ((), None)
    state = detector.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in source.state_dict().items())
    assert {name for name in state if name not in source.state_dict()} == {
        name for name in state if name.endswith("num_batches_tracked")
    }


@pytest.mark.parametrize(
    ("kind", "make", "norm"),
    [
        (RESNET, resnet50, "frozen-batch-norm"),
        (MOBILE, mobilenet_v3_large, "frozen-batch-norm"),
        (MOBILE, mobilenet_v3_large, "batch-norm"),
    ],
)
def test_a_classifiers_checkpoint_gives_the_backbone(
    kind: str, make: Callable[[], torch.nn.Module], norm: str, tmp_path: Path
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        state = make().state_dict()
    path = saved(tmp_path / "imagenet.pth", state)
    detector, fresh = built(from_file(kind, norm=norm)), built(from_file(kind, norm=norm))
    report = load_checkpoint(detector, path)
    path.unlink()
    assert {".".join(name.split(".")[:2]) for name in report.taken} == {"backbone.body"}
    assert not [name for name in report.drawn if name.startswith("backbone.body.")]
    for name, tensor in detector.state_dict().items():
        theirs = name.removeprefix("backbone.body.")
        origin = state.get(f"features.{theirs}", state.get(theirs)) if name in report.taken else None
        assert torch.equal(tensor, fresh.state_dict()[name] if origin is None else origin), name


@pytest.mark.parametrize("width", [32, 48])
def test_vgg16s_classifier_gives_fc6_and_fc7_if_the_width_fits(width: int, tmp_path: Path) -> None:
    source = built(from_file(VGG), seed=8).state_dict()
    state = {name.replace("backbone.", "features."): tensor for name, tensor in source.items() if "backbone" in name}
    for number, layer in ((0, "fc6"), (3, "fc7")):
        for part in ("weight", "bias"):
            state[f"classifier.{number}.{part}"] = source[f"roi_heads.box_head.{layer}.{part}"]
    state["classifier.6.weight"] = torch.zeros(1000, 32)
    path = saved(tmp_path / "vgg.pth", state)
    detector = built(from_file(VGG, fc_width=width))
    report = load_checkpoint(detector, path)
    path.unlink()
    assert len([name for name in report.taken if name.startswith("backbone.")]) == 26
    heads = [name for name in report.taken if name.startswith("roi_heads.box_head.")]
    assert len(heads) == (4 if width == 32 else 0)
    assert all(torch.equal(detector.state_dict()[name], source[name]) for name in report.taken)


def without(name: str) -> Callable[[State], Any]:
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


def with_tensor(name: str, tensor: Tensor) -> Callable[[State], Any]:
    return lambda state: {**state, name: tensor}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("rpn.head.cls_logits.bias"), r"tensor rpn\.head\.cls_logits\.bias is missing"),
        (with_tensor("roi_heads.mask_head.weight", torch.zeros(1)), r"roi_heads\.mask_head\.weight is not of this det"),
        (
            with_tensor("rpn.head.cls_logits.bias", torch.zeros(3)),
            r"tensor rpn\.head\.cls_logits\.bias: expected shape \[15\], found \[3\]",
        ),
        (
            with_tensor("rpn.head.cls_logits.bias", torch.ones(15, dtype=torch.int32)),
            r"tensor rpn\.head\.cls_logits\.bias: expected float32, found int32",
        ),
        (with_tensor("rpn.head.cls_logits.bias", torch.full((15,), torch.nan)), r"cls_logits\.bias holds NaN or inf"),
        (lambda state: {"conv1.weight": torch.zeros(64, 3, 7, 7)}, r"tensor backbone\.body\.\S+ is missing"),
        (lambda state: {"model": {"a": torch.zeros(1)}}, r"tensors by name, found something else"),
        (lambda state: [torch.zeros(1)], r"tensors by name, found something else"),
        (lambda state: {"a": Path("x")}, r"expected a state dict of torchvision: "),
    ],
)
def test_files_that_do_not_fit_are_refused_and_change_nothing(
    coco: Path, tmp_path: Path, change: Callable[[State], Any], message: str
) -> None:
    path = saved(tmp_path / "wrong.pth", change(torch.load(coco, weights_only=True)))
    detector = built(from_file())
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    with pytest.raises(DataError, match=message) as caught:
        load_checkpoint(detector, path)
    path.unlink()
    assert str(path) in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.state_dict().items())


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    for content in (None, b"", b"\x89PNG\r\n\x1a\n"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.pth: expected a state dict of torchvision: "):
            load_checkpoint(built(from_file()), path)


# --- how a run starts from a file ---------------------------------------------------------------------------------


def test_round_0_starts_from_the_file(coco: Path) -> None:
    settings = Settings(weights_dir=coco.parent)
    spec = FederationSpec(detector=tiny(MOBILE, weights={"kind": "torchvision", "name": "coco.pth"}))
    pinned = pin_weights(spec, settings)
    digest = hashlib.sha256(coco.read_bytes()).hexdigest()
    assert pinned.detector.weights == spec.detector.weights.model_copy(update={"sha256": digest})
    assert pin_weights(pinned, settings) == pinned
    require_weights(pinned, settings)
    detector, report = initial_detector(pinned.detector, 3, seed=1, file_of=settings.weight_file)
    expected = built(spec.detector)
    load_checkpoint(expected, coco)
    assert str(report).startswith("coco.pth: backbone.body (262 tensors), ")
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in detector.state_dict().items())
    (note, *_) = licence_notes(pinned)
    assert f"torchvision checkpoint coco.pth (sha256 {digest}): its own licence" in note


def test_a_missing_file_and_another_file_are_refused(coco: Path) -> None:
    settings = Settings(weights_dir=coco.parent)

    def named(name: str, **fields: str) -> FederationSpec:
        return FederationSpec(detector=tiny(MOBILE, weights={"kind": "torchvision", "name": name, **fields}))

    with pytest.raises(DataError, match=r"weights\.name: none\.pth: .*cannot be read: .*FEDBENCH_WEIGHTS_DIR"):
        pin_weights(named("none.pth"), settings)
    with pytest.raises(DataError, match=r"coco\.pth: expected 0{64}, found [0-9a-f]{64}: it is another file"):
        require_weights(named("coco.pth", sha256="0" * 64), settings)
    other = coco.parent / "vgg16-397923af.pth"
    other.write_bytes(b"not VGG16")
    with pytest.raises(DataError, match=r"vgg16-397923af\.pth: expected sha256 397923af8e\w+, which torchvision has"):
        pin_weights(named(other.name), settings)
    other = coco.parent / "mine-397923af.pth"
    other.write_bytes(b"not VGG16")
    with pytest.raises(DataError, match=r"mine-397923af\.pth: expected a sha256 that starts with 397923af, as its"):
        pin_weights(named(other.name), settings)


def test_the_names_of_published_files_are_torchvisions() -> None:
    published = {
        (VGG, "imagenet"): VGG16_Weights.IMAGENET1K_V1,
        (RESNET, "imagenet"): ResNet50_Weights.IMAGENET1K_V1,
        (RESNET, "coco"): FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
        (MOBILE, "imagenet"): MobileNet_V3_Large_Weights.IMAGENET1K_V1,
        (MOBILE, "coco"): FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1,
    }
    assert {key: HUB + name for key, name in HUB_FILES.items()} == {key: item.url for key, item in published.items()}
    assert PUBLISHED_SHA256.keys() == set(HUB_FILES.values())
    for name, digest in PUBLISHED_SHA256.items():
        assert re.fullmatch(r"[0-9a-f]{64}", digest)
        assert name.endswith(f"-{digest[:8]}.pth")


@pytest.fixture
def hub(coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a file that a server on loopback publishes, in place of torchvision's for MobileNet's detector."""
    digest = hashlib.sha256(coco.read_bytes()).hexdigest()
    file = tmp_path / "hub" / f"detector-{digest[:8]}.pth"
    file.parent.mkdir()
    file.hardlink_to(coco)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=file.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        monkeypatch.setattr(weight_file, "HUB", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setitem(weight_file.HUB_FILES, (MOBILE, "coco"), file.name)
        monkeypatch.setitem(weight_file.PUBLISHED_SHA256, file.name, digest)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield file
        server.shutdown()


def asked(**fields: str) -> FederationSpec:
    return FederationSpec(detector=tiny(MOBILE, weights={"kind": "torchvision-hub", "trained_on": "coco", **fields}))


def test_a_file_is_downloaded_once_and_only_if_requested(hub: Path, tmp_path: Path) -> None:
    name, digest = hub.name, hashlib.sha256(hub.read_bytes()).hexdigest()
    settings = Settings(home=tmp_path / "home")
    with pytest.raises(DataError, match=rf"weights\.name: {name}: .*cannot be read"):
        pin_weights(FederationSpec(detector=tiny(MOBILE, weights={"kind": "torchvision", "name": name})), settings)
    pinned = pin_weights(asked(), settings)
    downloaded = settings.weight_file(name)
    damaged = bytearray(downloaded.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    downloaded.write_bytes(damaged)
    assert pin_weights(asked(), settings) == pinned  # the damaged file is downloaded again
    hub.unlink()
    require_weights(pinned, settings)
    assert [path.name for path in (tmp_path / "home" / "weights").iterdir()] == [name]
    _, report = initial_detector(pinned.detector, 3, seed=1, file_of=settings.weight_file)
    assert str(report).startswith(f"{name}: backbone.body (262 tensors)")
    assert f"{name} (sha256 {digest})" in licence_notes(pinned)[0]


def test_a_failed_or_wrong_download_leaves_no_file(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=tmp_path / "home")
    whole = hub.read_bytes()
    digest = hashlib.sha256(whole).hexdigest()
    hub.unlink()
    with pytest.raises(
        DataError, match=rf"torchvision-hub: http:.*{hub.name} cannot be downloaded: .*put the file at "
    ):
        pin_weights(asked(), settings)
    hub.write_bytes(b"half of it")
    with pytest.raises(DataError, match=rf"expected sha256 {digest}, which torchvision has published, found"):
        pin_weights(asked(), settings)
    # The file's digest starts with the digits of its name, but differs from the published one.
    hub.write_bytes(whole)
    monkeypatch.setitem(weight_file.PUBLISHED_SHA256, hub.name, digest[:-1] + "x")
    with pytest.raises(
        DataError, match=rf"expected sha256 {digest[:-1]}x, which torchvision has published, found {digest}"
    ):
        pin_weights(asked(), settings)
    # If the specification asks for another digest, nothing is downloaded.
    hub.unlink()
    with pytest.raises(DataError, match=rf"weights\.sha256: torchvision-hub: expected .*{hub.name}, found 0{{64}}"):
        require_weights(asked(sha256="0" * 64), settings)
    assert not list((tmp_path / "home" / "weights").iterdir())
