"""The role of every tensor of every detector, and the learning rate of its parameters."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tasks.detectors.base import Detector
from tasks.detectors.registry import build_detector
from tasks.detectors.roles import TensorRole, roles_of, tensor_roles
from tasks.spec.detector import FcosLite0Spec
from tasks.spec.training import Sgd
from tasks.training.optimizers import build_optimizer, set_learning_rate
from tests.tasks.detectors.tiny_detectors import MOBILE, TINY, VGG, tiny
from tests.tasks.strategies.small_federation import Small

pytestmark = pytest.mark.usefixtures("one_thread")


def check_roles(detector: Detector) -> None:
    """Check roles and rates against what the modules are and what an optimiser does."""
    roles, state = tensor_roles(detector), detector.state_dict()
    assert list(roles) == list(state)
    parameters, buffers = dict(detector.named_parameters()), dict(detector.named_buffers())
    optimizer = build_optimizer(detector, Sgd(), 1.0)
    set_learning_rate(optimizer, 2.0)
    rates = {id(parameter): group["lr"] / 2 for group in optimizer.param_groups for parameter in group["params"]}
    for name, role in roles.items():
        if role.kind == "parameter":
            parameter = parameters[name]
            assert role.rate == rates.get(id(parameter), 0), name
            assert role.trained is parameter.requires_grad, name
        else:
            assert name in buffers, name
            assert (role.rate, role.trained) == (0, False)
            assert role.kind == ("counter" if name.endswith("num_batches_tracked") else "buffer"), name
            assert state[name].is_floating_point() is (role.kind == "buffer")


@pytest.mark.parametrize("kind", [kind for kind in TINY if kind != "yolov3"])
def test_every_tensor_of_every_detector_has_its_role(kind: str) -> None:
    """YOLOv3 has YOLOv3-tiny's modules, and is large."""
    detector = build_detector(TINY[kind], 3, seed=1)
    check_roles(detector)
    roles = roles_of(TINY[kind], 3)
    assert roles == tensor_roles(detector)
    counts = Counter(role.kind for role in roles.values())
    norms = [module for module in detector.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert counts["counter"] == len(norms)
    assert counts["buffer"] >= 2 * len(norms)
    roles_of.cache_clear()


def test_frozen_parameters_have_no_rate_and_the_backbone_has_its_factor() -> None:
    spec = FcosLite0Spec(width=64, height=64, frozen_blocks=3, backbone_lr=0.3)
    detector = build_detector(spec, 3, seed=1)
    check_roles(detector)
    rates = {name: role.rate for name, role in tensor_roles(detector).items() if role.kind == "parameter"}
    backbone = {rate for name, rate in rates.items() if name.startswith("backbone")}
    assert backbone == {0.0, 0.3}
    assert {rate for name, rate in rates.items() if not name.startswith("backbone")} == {1.0}


def test_frozen_batch_norm_is_buffers_alone() -> None:
    detector = build_detector(tiny(MOBILE, weights={"kind": "torchvision-hub"}), 3, seed=1)
    check_roles(detector)
    roles = tensor_roles(detector)
    frozen = [name for name in roles if name.endswith("running_var")]
    assert frozen
    for name in frozen:
        prefix = name.removesuffix("running_var")
        kinds = {part: roles[prefix + part] for part in ("weight", "bias", "running_mean", "running_var")}
        assert set(kinds.values()) == {TensorRole("buffer")}, prefix
    assert "counter" not in {role.kind for role in roles.values()}
    assert {role.rate for name, role in roles.items() if role.kind == "parameter"} > {0.0}


def test_frozen_stages_of_vgg_have_no_rate() -> None:
    detector = build_detector(tiny(VGG), 3, seed=1)
    trained = {name for name, parameter in detector.named_parameters() if parameter.requires_grad}
    assert {name for name, role in tensor_roles(detector).items() if role.trained} == trained


def test_the_small_detector_has_every_role() -> None:
    check_roles(Small())
    roles = tensor_roles(Small())
    assert roles["frozen.weight"] == TensorRole("parameter", 0.0)
    assert roles["head.bias"] == TensorRole("parameter", 0.5)
    assert roles["idle"] == TensorRole("parameter", 1.0)
    assert roles["norm.weight"] == TensorRole("parameter", 1.0, normalisation=True)
    assert roles["norm.running_var"] == TensorRole("buffer", normalisation=True)
    assert roles["norm.num_batches_tracked"] == TensorRole("counter", normalisation=True)


def test_a_tensor_with_two_names_has_its_role_by_both() -> None:
    detector = Small()
    detector.twin = detector.head
    roles = tensor_roles(detector)
    assert roles["twin.weight"] == roles["head.weight"] == TensorRole("parameter", 0.5)
