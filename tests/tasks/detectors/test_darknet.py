"""Darknet's weight files: sizes, order of the values, other class counts, wrong files; a run that starts from one."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flows.coordinator.preflight import pin_weights, require_weights
from infra.settings import Settings
from infra.settings_groups import S3Settings
from infra.store.objects import ObjectStore
from tasks.aggregate import initial_weights
from tasks.detectors.darknet import DarknetHeader, load_darknet, read_header
from tasks.detectors.initial import initial_detector
from tasks.detectors.registry import build_detector
from tasks.detectors.yolo_network import (
    Conv,
    Detect,
    MaxPool,
    Output,
    Route,
    Upsample,
    YoloNetwork,
    YoloV3,
    YoloV3Tiny,
    numbered,
)
from tasks.errors import DataError
from tasks.spec import detector as spec
from tasks.spec.federation import FederationSpec
from tests.tasks.detectors.darknet_files import darknet_bytes, packed, save_darknet
from tests.tasks.phase_handles import make_handles

pytestmark = pytest.mark.usefixtures("one_thread")

# A network of two scales whose files have a few kB: convolutions 0, 2, 3, 7 and 10; outputs 3 and 10.
SMALL = numbered(
    Conv(4), MaxPool(), Conv(8, 1), Output(1), Detect(1),
    Route((-3,)), Upsample(), Conv(4), Route((-1, 0)), Conv(4), Output(0), Detect(0),
)  # fmt: skip


def small(seed: int, classes: int = 7) -> YoloNetwork:
    """Return a network whose tensors, also running statistics, all differ from each other."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = YoloNetwork(spec.YoloV3TinySpec(width=64, height=64), classes, SMALL)
        with torch.no_grad():
            for name, tensor in net.state_dict().items():
                if tensor.is_floating_point() and not name.endswith("conv.weight"):
                    tensor.uniform_(0.1, 1)
    return net.to(memory_format=torch.channels_last)


def same(net: YoloNetwork, other: YoloNetwork, layers: set[int]) -> bool:
    """Return whether the convolutions of ``layers``, and no others, are equal."""
    ours, theirs = net.state_dict(), other.state_dict()
    equal = {
        number
        for number in map(int, net.layers)
        if all(
            torch.equal(ours[name], theirs[name])
            for name in ours
            if name.startswith(f"layers.{number}.") and ours[name].shape == theirs[name].shape
        )
    }
    return equal == layers


ALL = {0, 2, 3, 7, 9, 10}


def test_files_have_the_published_sizes() -> None:
    with torch.device("meta"):
        full, tiny = YoloV3(spec.YoloV3Spec(), 80), YoloV3Tiny(spec.YoloV3TinySpec(), 80)
    assert darknet_bytes(full, layers=74) == 162_482_580
    assert darknet_bytes(tiny, layers=15) == 30_973_396
    assert darknet_bytes(full) == 248_007_048
    assert darknet_bytes(tiny) == 35_434_956


def test_a_file_of_the_published_size_loads(tmp_path: Path) -> None:
    path = tmp_path / "darknet53.conv.74"
    with path.open("wb") as file:
        file.write(packed(DarknetHeader()))
        file.truncate(162_482_580)
    with torch.device("meta"):
        full = YoloV3(spec.YoloV3Spec(), 7)
    report = load_darknet(full, path)
    assert (report.loaded[0], report.loaded[-1], len(report.loaded)) == (0, 73, 52)
    assert (report.skipped[0], report.skipped[-1], len(report.skipped)) == (75, 105, 23)
    assert str(report) == "darknet53.conv.74: layers 0–73 loaded, 75–105 left as they were"


@pytest.mark.parametrize(
    ("header", "size"),
    [
        (DarknetHeader(0, 1, 0, 64), 16),
        (DarknetHeader(0, 2, 0, 2**40), 20),
        (DarknetHeader(0, 2, 5, 32_013_312), 20),
        (DarknetHeader(1, 0, 0, 3), 20),
    ],
)
def test_headers_of_both_versions_are_read(tmp_path: Path, header: DarknetHeader, size: int) -> None:
    path = tmp_path / "net.weights"
    net = small(1)
    save_darknet(net, path, header=header)
    assert path.stat().st_size == darknet_bytes(net, header=header)
    assert len(packed(header)) == size
    assert read_header(path) == header
    fresh = small(2)
    assert load_darknet(fresh, path).header == header
    assert same(fresh, net, ALL)


def test_values_are_in_darknets_order(tmp_path: Path) -> None:
    path = tmp_path / "net.conv.1"
    beta, gamma, mean, variance = (np.arange(4, dtype="<f4") + offset for offset in (10, 20, 30, 40))
    kernel = np.arange(4 * 3 * 9, dtype="<f4").reshape(4, 3, 3, 3)
    values = [struct.pack("<iiiq", 0, 2, 0, 7), *(part.tobytes() for part in (beta, gamma, mean, variance, kernel))]
    path.write_bytes(b"".join(values))
    net = small(1)
    report = load_darknet(net, path)
    state = net.state_dict()
    assert state["layers.0.norm.bias"].tolist() == beta.tolist()
    assert state["layers.0.norm.weight"].tolist() == gamma.tolist()
    assert state["layers.0.norm.running_mean"].tolist() == mean.tolist()
    assert state["layers.0.norm.running_var"].tolist() == variance.tolist()
    assert np.array_equal(state["layers.0.conv.weight"].numpy(), kernel)
    assert (report.loaded, report.skipped, report.header.seen) == ((0,), (2, 3, 7, 9, 10), 7)
    save_darknet(net, tmp_path / "again", layers=1, header=report.header)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_biases_come_first_in_an_output(tmp_path: Path) -> None:
    net = small(1)
    save_darknet(net, tmp_path / "net")
    output = net.state_dict()["layers.10.weight"].numel()
    tail = np.frombuffer((tmp_path / "net").read_bytes()[-4 * (output + 36) :], "<f4")
    assert tail[:36].tolist() == net.state_dict()["layers.10.bias"].tolist()
    assert tail[36:].tolist() == net.state_dict()["layers.10.weight"].flatten().tolist()


def test_with_another_class_count_the_outputs_are_not_loaded(tmp_path: Path) -> None:
    coco = small(1, classes=80)
    save_darknet(coco, tmp_path / "net.weights")
    net, before = small(2), small(2)
    report = load_darknet(net, tmp_path / "net.weights")
    assert report.other_classes == 80
    assert (report.loaded, report.skipped) == ((0, 2, 7, 9), (3, 10))
    assert str(report) == (
        "net.weights: layers 0–2, 7–9 loaded, 3, 10 left as they were (its outputs are for 80 classes)"
    )
    assert same(net, before, {3, 10})
    assert all(
        torch.equal(value, coco.state_dict()[name])
        for name, value in net.state_dict().items()
        if name.split(".")[1] in {"0", "2", "7", "9"}
    )


def test_a_file_of_the_first_layers_loads_only_those(tmp_path: Path) -> None:
    """``X.conv.8`` goes past an output into the neck. yolov3-tiny.conv.15 goes up to its own output."""
    source = small(1)
    for name in ("net.conv.8", "renamed"):
        save_darknet(source, tmp_path / name, layers=8)
        net = small(2)
        assert load_darknet(net, tmp_path / name).skipped == (9, 10)
        assert same(net, source, {0, 2, 3, 7})
    save_darknet(small(1, classes=3), tmp_path / "other.conv.8", layers=8)
    report = load_darknet(small(2), tmp_path / "other.conv.8")
    assert (report.loaded, report.other_classes) == ((0, 2, 7), 3)


def _cut(size: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:size]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "net",
            lambda content: content[:-4],
            r"{short} bytes; expected {size} for all 12 layers of yolov3-tiny .*short",
        ),
        ("net", lambda content: content[:-3], r"expected {size} .*\(too short\)"),
        ("net", lambda content: content + bytes(4), r"{long} bytes; expected {size} .* with 7 classes \(too long\)"),
        ("net.conv.3", lambda content: content, r"{size} bytes; expected 772 for layers 0 to 2 .*\(too long\)"),
        ("net.conv.1", _cut(500), r"500 bytes; expected 516 for layers 0 to 0 .*\(too short\)"),
        ("net.conv.3", _cut(516), r"516 bytes; expected 772 for layers 0 to 2"),
        ("net", _cut(8), r"8 bytes; expected a Darknet weight file, whose header alone has 16 or 20"),
        ("net", _cut(18), r"18 bytes; .* header alone has 20 in version 0.2"),
        ("net", _cut(20), r"20 bytes; expected {size}"),
        ("net", lambda content: b"\x89PNG\r\n\x1a\n" + content, r"expected a Darknet weight file, .* version"),
        ("net", lambda content: content[:20] + b"\xff" * 4 + content[24:], r"layer 0 holds NaN or infinity"),
        (
            "net",
            lambda content: content[:68] + struct.pack("<f", -1) + content[72:],
            r"layer 0 .* negative running var",
        ),
    ],
)
def test_wrong_files_are_refused_and_change_nothing(
    tmp_path: Path, name: str, change: Callable[[bytes], bytes], message: str
) -> None:
    path = tmp_path / name
    save_darknet(small(1), path)
    size = path.stat().st_size
    path.write_bytes(change(path.read_bytes()))
    net = small(2)
    expected = message.format(size=size, short=size - 4, long=size + 4)
    with pytest.raises(DataError, match=expected) as caught:
        load_darknet(net, path)
    assert str(path) in str(caught.value)
    assert same(net, small(2), ALL)


def test_missing_files_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.weights", tmp_path):
        with pytest.raises(DataError, match=rf"{path}: the weight file cannot be read"):
            load_darknet(small(1), path)


def test_opencv_computes_the_same(tmp_path: Path) -> None:
    """OpenCV's reader of cfg and weight files is an oracle for order, wiring and the stride-1 pool."""
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2.dnn, "readNetFromDarknet"):
        pytest.skip("this OpenCV reads no Darknet files")

    def conv(filters: int, size: int = 3) -> str:
        kind = "batch_normalize=1\nactivation=leaky" if filters != 255 else "activation=linear"
        return f"[convolutional]\nfilters={filters}\nsize={size}\nstride=1\npad=1\n{kind}\n"

    def pool(stride: int = 2) -> str:
        return f"[maxpool]\nsize=2\nstride={stride}\n"

    anchors = "10,14, 23,27, 37,58, 81,82, 135,169, 344,319"

    def yolo(mask: str) -> str:
        return f"[yolo]\nmask={mask}\nanchors={anchors}\nclasses=80\nnum=6\n"

    cfg = "[net]\nwidth=96\nheight=96\nchannels=3\n"
    cfg += "".join(conv(filters) + pool() for filters in (16, 32, 64, 128, 256))
    cfg += conv(512) + pool(1) + conv(1024) + conv(256, 1) + conv(512) + conv(255, 1) + yolo("3,4,5")
    cfg += "[route]\nlayers=-4\n" + conv(128, 1) + "[upsample]\nstride=2\n[route]\nlayers=-1,8\n"
    cfg += conv(256) + conv(255, 1) + yolo("0,1,2")
    (tmp_path / "tiny.cfg").write_text(cfg)
    net = build_detector(spec.YoloV3TinySpec(width=96, height=96, anchors=spec.YOLOV3_TINY_ANCHORS), 80, seed=1).eval()
    assert isinstance(net, YoloNetwork)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(2)
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps = 1e-6  # the value in OpenCV
                for tensor, low, high in (
                    (module.weight, 0.5, 1.5),
                    (module.bias, -0.3, 0.3),
                    (module.running_mean, -0.3, 0.3),
                    (module.running_var, 0.1, 1.0),
                ):
                    assert tensor is not None
                    tensor.uniform_(low, high)
        pixels = torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8)
        ours = net(pixels)
    save_darknet(net, tmp_path / "tiny.weights")
    theirs = cv2.dnn.readNetFromDarknet(str(tmp_path / "tiny.cfg"), str(tmp_path / "tiny.weights"))
    theirs.enableFusion(False)
    theirs.setInput(pixels.float().numpy() / 255)
    for mine, other in zip(ours, theirs.forward(["conv_22", "conv_15"]), strict=True):
        assert np.allclose(mine.permute(0, 1, 4, 2, 3).reshape(other.shape).numpy(), other, rtol=1e-4, atol=1e-4)


# How a run starts from a file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    net = build_detector(spec.YoloV3TinySpec(width=64, height=64), 7, seed=77)
    assert isinstance(net, YoloNetwork)
    save_darknet(net, folder / "tiny.conv.15", layers=15)
    return folder


def from_file(name: str = "tiny.conv.15", sha256: str | None = None) -> FederationSpec:
    weights = spec.DarknetWeights(name=name, sha256=sha256)
    return FederationSpec(detector=spec.YoloV3TinySpec(width=64, height=64, weights=weights))


def test_round_0_starts_from_the_file(folder: Path) -> None:
    settings = Settings(weights_dir=folder)
    pinned = pin_weights(from_file(), settings)
    digest = hashlib.sha256((folder / "tiny.conv.15").read_bytes()).hexdigest()
    assert pinned == from_file(sha256=digest)
    assert pin_weights(pinned, settings) == pinned
    require_weights(pinned, settings)
    net, report = initial_detector(pinned.detector, 7, seed=5, file_of=settings.weight_file)
    fresh, without = initial_detector(spec.YoloV3TinySpec(width=64, height=64), 7, seed=5, file_of=settings.weight_file)
    stored = build_detector(spec.YoloV3TinySpec(width=64, height=64), 7, seed=77)
    assert (str(report), without) == ("tiny.conv.15: layers 0–14 loaded, 15–22 left as they were", None)
    for name, value in net.state_dict().items():
        source = stored if int(name.split(".")[1]) < 15 else fresh
        assert torch.equal(value, source.state_dict()[name]), name


def test_round_0_is_stored(folder: Path, s3_settings: S3Settings, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, weights_dir=folder)
    handles, notes = make_handles(ObjectStore(s3_settings), tmp_path, "darknet")
    handles.settings = settings
    ref = initial_weights(handles, from_file(), 7)
    state = load_file(handles.weights.get(ref.key, ref.sha256, ref.bytes).path)
    net, report = initial_detector(from_file().detector, 7, seed=FederationSpec().seed, file_of=settings.weight_file)
    assert notes.calls == [("message", str(report))]
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_another_file_is_refused(folder: Path) -> None:
    settings, other = Settings(weights_dir=folder), from_file(sha256="0" * 64)
    with pytest.raises(
        DataError, match=r"detector\.weights\.sha256: .*tiny\.conv\.15: expected 0{64}, found [0-9a-f]{64}"
    ):
        require_weights(other, settings)
    with pytest.raises(DataError, match=r"it is another file"):
        initial_detector(other.detector, 7, seed=5, file_of=settings.weight_file)


def test_an_unmapped_file_is_refused(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    assert settings.weight_file("a.conv.1") == tmp_path / "weights" / "a.conv.1"
    for call in (pin_weights, require_weights):
        with pytest.raises(DataError, match=r"weights\.name: a\.conv\.1: .*cannot be read: .*FEDBENCH_WEIGHTS_DIR"):
            call(from_file("a.conv.1"), settings)
    assert pin_weights(FederationSpec(), settings) == FederationSpec()
    require_weights(FederationSpec(), settings)
