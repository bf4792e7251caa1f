"""The original's parameters in YOLOv3-tiny and YOLOv3, and new estimates of BatchNorm's statistics.

As an oracle, this file implements the original's YOLOv3-tiny as plain functions over its list of parameters.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.data.samples import ImageSample
from tasks.detectors.registry import build_detector
from tasks.detectors.yolo_network import YoloNetwork
from tasks.errors import DataError
from tasks.original.unpickle import read_arrays
from tasks.original.weights import load_parameters
from tasks.spec.detector import YoloV3Spec, YoloV3TinySpec
from tasks.training.batch_norm import estimate_statistics, sample_images

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES, SIZE = 7, 64
Arrays = list[np.ndarray[Any, Any]]
# Input channels, output channels and side of each kernel, in the cfg's order. None marks an output, without BatchNorm.
TINY = [
    (3, 16, 3), (16, 32, 3), (32, 64, 3), (64, 128, 3), (128, 256, 3), (256, 512, 3), (512, 1024, 3),
    (1024, 256, 1), (256, 512, 3), (512, None, 1), (256, 128, 1), (384, 256, 3), (256, None, 1),
]  # fmt: skip
NUMBERS = [0, 2, 4, 6, 8, 10, 12, 13, 14, 15, 18, 21, 22]  # the numbers of these layers in the cfg


def tiny_arrays(classes: int = CLASSES, dtype: str = "f8") -> Arrays:
    """Return parameters as the original's server pickles them: float64 after the first round."""
    draw = np.random.default_rng(5)
    found: Arrays = []
    for inputs, outputs, side in TINY:
        filters = outputs or 3 * (5 + classes)
        found.append(draw.normal(scale=(2 / (inputs * side * side)) ** 0.5, size=(filters, inputs, side, side)))
        if outputs:
            found.append(draw.uniform(0.5, 1.5, size=filters))
        found.append(draw.normal(scale=0.2, size=filters))
    return [array.astype(dtype) for array in found]


def slow_tiny(arrays: Arrays, images: Tensor) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    """Run the original's network forward in training mode.

    Returns each BatchNorm's batch mean and unbiased variance, and the raw maps, coarse and fine.
    """
    queue = [torch.from_numpy(array.astype(np.float32)) for array in arrays]
    statistics = []

    def block(x: Tensor) -> Tensor:
        kernel, gamma, beta = (queue.pop(0) for _ in range(3))
        x = functional.conv2d(x, kernel, padding=kernel.shape[2] // 2)
        mean = x.mean(dim=(0, 2, 3))
        centred = x - mean[:, None, None]
        count = x.numel() / x.shape[1]
        variance = (centred**2).sum(dim=(0, 2, 3)) / count
        statistics.append((mean, variance * count / (count - 1)))
        x = centred / (variance + 1e-5).sqrt()[:, None, None]
        x = x * gamma[:, None, None] + beta[:, None, None]
        return torch.where(x > 0, x, 0.1 * x)

    def output(x: Tensor) -> Tensor:
        kernel, bias = queue.pop(0), queue.pop(0)
        return functional.conv2d(x, kernel, bias)

    x = images.float() / 255
    for _ in range(4):
        x = functional.max_pool2d(block(x), 2)
    middle = block(x)
    x = block(functional.max_pool2d(middle, 2))
    x = functional.max_pool2d(functional.pad(x, (0, 1, 0, 1), value=-1e9), 2, 1)
    narrow = block(block(x))
    coarse = output(block(narrow))
    up = block(narrow).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    fine = output(block(torch.cat([up, middle], dim=1)))
    assert not queue
    return statistics, [coarse, fine]


def detector_of(classes: int = CLASSES) -> YoloNetwork:
    detector = build_detector(YoloV3TinySpec(width=SIZE, height=SIZE), classes, seed=1)
    assert isinstance(detector, YoloNetwork)
    return detector


def batches(count: int = 3, images: int = 4) -> list[Tensor]:
    draw = torch.Generator().manual_seed(2)
    return [torch.randint(0, 256, (images, 3, SIZE, SIZE), dtype=torch.uint8, generator=draw) for _ in range(count)]


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    return tiny_arrays()


def test_parameters_and_statistics_equal_those_of_the_oracle(arrays: Arrays, tmp_path: Path) -> None:
    path = tmp_path / "yolo_model.pkl"
    path.write_bytes(pickle.dumps(arrays))
    detector = detector_of()
    report = load_parameters(detector, read_arrays(path), source=str(path))
    assert (report.arrays, report.dtype, report.other_classes) == (37, "float64", None)
    assert str(report) == "37 arrays of float64: all parameters"
    weights = {name: parameter.detach().clone() for name, parameter in detector.named_parameters()}

    images = batches()
    assert estimate_statistics(detector, images) == 12
    slow = [slow_tiny(arrays, batch)[0] for batch in images]
    layers = [number for number, (_, outputs, _) in zip(NUMBERS, TINY, strict=True) if outputs]
    for index, number in enumerate(layers):
        norm = detector.get_submodule(f"layers.{number}.norm")
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.momentum == 0.1
        for statistic, found in ((0, norm.running_mean), (1, norm.running_var)):
            expected = torch.stack([batch[index][statistic] for batch in slow]).mean(dim=0)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert detector.training
    assert all(torch.equal(weights[name], parameter) for name, parameter in detector.named_parameters())

    with torch.no_grad():
        fine, coarse = detector(images[0])
    for ours, theirs in zip((coarse, fine), slow_tiny(arrays, images[0])[1], strict=True):
        theirs = theirs.view(4, 3, 5 + CLASSES, *theirs.shape[2:]).permute(0, 1, 3, 4, 2)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_statistics_of_the_first_layer_by_hand(arrays: Arrays) -> None:
    detector = detector_of()
    load_parameters(detector, arrays, source="x")
    images = batches(2)
    estimate_statistics(detector, images)
    kernel = torch.from_numpy(arrays[0])
    maps = [functional.conv2d(batch.double() / 255, kernel, padding=1) for batch in images]
    norm = detector.get_submodule("layers.0.norm")
    mean = (maps[0].mean((0, 2, 3)) + maps[1].mean((0, 2, 3))) / 2
    variance = (maps[0].var((0, 2, 3)) + maps[1].var((0, 2, 3))) / 2
    torch.testing.assert_close(norm.running_mean, mean.float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(norm.running_var, variance.float(), rtol=1e-4, atol=1e-6)


def test_a_new_estimate_replaces_the_old_one(arrays: Arrays) -> None:
    detector = detector_of().eval()
    load_parameters(detector, arrays, source="x")
    estimate_statistics(detector, batches(1))
    estimate_statistics(detector, batches(3))
    again = detector_of()
    load_parameters(again, arrays, source="x")
    estimate_statistics(again, batches(3))
    assert not detector.training
    assert all(torch.equal(detector.state_dict()[name], value) for name, value in again.state_dict().items())


def test_yolov3_has_as_many_parameters_as_its_cfg() -> None:
    """72 convolutions with BatchNorm and 3 without; 61,949,149 numbers for COCO's 80 classes."""
    with torch.device("meta"):
        shapes = [parameter.shape for parameter in build_detector(YoloV3Spec(), 80, seed=1).parameters()]
    assert len(shapes) == 222
    assert shapes[:4] == [(32, 3, 3, 3), (32,), (32,), (64, 32, 3, 3)]
    assert shapes[-2:] == [(255, 256, 1, 1), (255,)]
    assert sum(shape.numel() for shape in shapes) == 61_949_149


def test_with_other_classes_the_outputs_keep_their_initial_weights(arrays: Arrays) -> None:
    detector, fresh = detector_of(3), detector_of(3)
    report = load_parameters(detector, arrays, source="x")
    assert report.other_classes == CLASSES
    assert "but the outputs, which are for 7 classes" in str(report)
    ours, before = detector.state_dict(), fresh.state_dict()
    for number in NUMBERS:
        output = number in (15, 22)
        name = f"layers.{number}.{'' if output else 'conv.'}weight"
        assert torch.equal(ours[name], before[name]) == output


def wrong(case: str, arrays: Arrays) -> Arrays:
    found = list(arrays)
    match case:
        case "one missing":
            return found[:-1]
        case "one more":
            return [*found, np.zeros(3)]
        case "of yolov3":
            return [np.zeros(1)] * 222
        case "shape":
            found[3] = found[3][:, :8]
        case "transposed":
            found[21] = found[21].transpose(1, 0, 2, 3)
        case "norm":
            found[4] = found[4][:-1]
        case "order":
            found[0], found[1] = found[1], found[0]
        case "integers":
            found[1] = found[1].astype("i4")
        case "flags":
            found[2] = found[2] > 0
        case "nan":
            found[5] = found[5] * np.nan
        case "overflow":
            found[5] = found[5] + 1e300
        case "outputs disagree":
            found[27:29] = [array[:24] for array in found[27:29]]
        case "anchors":
            found[27:29], found[35:37] = [array[:34] for array in found[27:29]], [array[:34] for array in found[35:37]]
    return found


WRONG = {
    "one missing": "x.pkl: 36 arrays; expected 37, the parameters of yolov3-tiny",
    "one more": "x.pkl: 38 arrays; expected 37",
    "of yolov3": "x.pkl: 222 arrays; expected 37, the parameters of yolov3-tiny; yolov3 has 222",
    "shape": "array 3 (layers.2.conv.weight): expected shape [32, 16, 3, 3], found [32, 8, 3, 3]",
    "transposed": "array 21 (layers.13.conv.weight): expected shape [256, 1024, 1, 1], found [1024, 256, 1, 1]",
    "norm": "array 4 (layers.2.norm.weight): expected shape [32], found [31]",
    "order": "array 0 (layers.0.conv.weight): expected shape [16, 3, 3, 3], found [16]",
    "integers": "array 1 (layers.0.norm.weight): expected floating-point numbers, found int32",
    "flags": "array 2 (layers.0.norm.bias): expected floating-point numbers, found bool",
    "nan": "array 5 (layers.2.norm.bias): holds NaN or infinity; expected weights",
    "overflow": "array 5 (layers.2.norm.bias): holds NaN or infinity; expected weights",
    "outputs disagree": "array 27 (layers.15.weight): expected shape [36, 512, 1, 1], found [24, 512, 1, 1]",
    "anchors": "array 27 (layers.15.weight): expected shape [36, 512, 1, 1], found [34, 512, 1, 1]",
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.filterwarnings("ignore:overflow")
def test_lists_that_do_not_fit_are_refused_and_change_nothing(case: str, arrays: Arrays) -> None:
    detector, before = detector_of(), detector_of().state_dict()
    with pytest.raises(DataError) as caught:
        load_parameters(detector, wrong(case, arrays), source="x.pkl")
    assert WRONG[case] in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in detector.state_dict().items())


def test_statistics_need_images_and_finite_weights(arrays: Arrays) -> None:
    detector = detector_of()
    with pytest.raises(DataError, match="no images to estimate them from"):
        estimate_statistics(detector, [])
    with torch.no_grad():
        detector.get_parameter("layers.2.norm.weight").fill_(3e38)
    with pytest.raises(DataError, match=r"layers\.4\.norm\.running_mean is NaN or infinite"):
        estimate_statistics(detector, batches(1))
    norm = detector.get_submodule("layers.4.norm")
    assert norm.momentum == 0.1
    assert detector.training


def test_only_batch_norm_is_in_training_mode_during_an_estimate() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(2))
    model[1].eval()
    images = torch.rand(4, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    estimate_statistics(model, [images])
    torch.testing.assert_close(model[1].running_mean, images.mean((0, 2, 3)))
    torch.testing.assert_close(model[1].running_var, images.var((0, 2, 3)))
    assert (model[0].training, model[1].training, model[1].momentum) == (True, False, 0.1)


def test_images_are_drawn_from_the_seed_in_whole_batches() -> None:
    samples = [
        ImageSample(Path(str(i)), 8, 8, np.zeros((0, 4), "f4"), np.zeros(0, "i8"), key=str(i), content=str(i))
        for i in range(21)
    ]
    keys = [sample.key for sample in sample_images(samples, 20, seed=1, batch_size=8)]
    assert len(set(keys)) == len(keys) == 16
    assert keys == [sample.key for sample in sample_images(samples, 20, seed=1, batch_size=8)]
    assert keys != [sample.key for sample in sample_images(samples, 20, seed=2, batch_size=8)]
    assert len(sample_images(samples, 100, seed=1, batch_size=4)) == 20
    assert len(sample_images(samples, 5, seed=1, batch_size=8)) == 5
