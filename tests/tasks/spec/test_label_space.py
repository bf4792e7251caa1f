"""``data.label_space``: what is refused, and what it changes in a digest."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import yaml

from flows.coordinator.preflight import pin, require_kinds
from infra.settings import Settings
from infra.settings_groups import PoolSettings
from tasks.detectors.base import Detector
from tasks.detectors.fcos import FcosLite0
from tasks.detectors.registry import require_masks
from tasks.errors import SpecError
from tasks.spec.base import digest_fields
from tasks.spec.detector_parts import OwnDetectorSpec
from tasks.spec.federation import FederationSpec, load_spec, parse_spec, with_fields
from tasks.spec.label_space import by_label_space
from tasks.spec.references import is_local_only, is_twin, local_only, twin

STREET = {"kind": "synthetic-street"}
TWO = {"kind": "coco", "name": "mine", "classes": ["cup", "bin"], "clients": {"kind": "iid", "clients": 2}}
SPACE = {"1": ["cup"], "2": ["bin"]}

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown device": ({**STREET, "label_space": {"6": ["chair"]}},
        "data.label_space: expected devices of the data set, 1 to 5, found 6"),
    "no device": ({**STREET, "label_space": {}},
        "data.label_space: expected at least one device with its classes, found none"),
    "empty list": ({**STREET, "label_space": {"1": []}}, "data.label_space.1: expected a list of at least 1, found []"),
    "a class that is no list": ({**STREET, "label_space": {"1": "chair"}},
        "data.label_space.1: expected a list, found 'chair'"),
    "a list of devices": ({**STREET, "label_space": ["1", "2"]},
        "data.label_space: expected a mapping of fields, found ['1', '2']"),
    "null for a device": ({**STREET, "label_space": {"1": None}}, "data.label_space.1: expected a list, found None"),
    "a class twice": ({**TWO, "label_space": {"1": ["cup", "cup"]}}, "data.label_space.1: expected each class once"),
    "unknown class": ({**TWO, "label_space": {"1": ["cup", "mug"]}},
        "data.label_space.1: expected classes of cup, bin, found mug"),
    "a class of nobody": ({**TWO, "label_space": {"1": ["cup"], "2": ["cup"]}},
        "data.label_space: expected each class to be labelled by a device, found none for bin"),
    "a name that is none": ({**STREET, "label_space": {"a b": ["chair"]}}, "data.label_space.a b"),
    "the pooled client": ({**TWO, "pooled": True, "label_space": {"all": ["cup"]}},
        "data.label_space: expected devices of the data set, 1 to 2, found all"),
    "a score without label space": ({**STREET, "unlabelled_score": 0.2},
        "data.unlabelled_score: expected none unless label_space is set"),
    "a score of 0": ({**TWO, "label_space": SPACE, "unlabelled_score": 0},
        "data.unlabelled_score: expected more than 0, found 0"),
    "a score of 1": ({**TWO, "label_space": SPACE, "unlabelled_score": 1},
        "data.unlabelled_score: expected less than 1, found 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_label_space_is_refused_with_its_field(case: str, tmp_path: Path) -> None:
    data, expected = BAD[case]
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump({"data": data}))
    with pytest.raises(SpecError) as refused:
        load_spec(path)
    assert f"my.yaml: {expected}" in str(refused.value)


def spec(**fields: Any) -> FederationSpec:
    return parse_spec({"data": {**TWO, **fields}}, source="x")


def test_a_label_space_is_part_of_the_digest_and_its_score_only_with_it() -> None:
    plain, partly = spec(), spec(label_space=SPACE)
    assert not {"label_space", "unlabelled_score"} & digest_fields(plain)["data"].keys()
    found = digest_fields(partly)["data"]
    assert (found["label_space"], found["unlabelled_score"]) == (SPACE, 0.1)
    digests = {plain.digest, partly.digest, spec(label_space=SPACE, unlabelled_score=0.3).digest}
    assert len(digests | {spec(label_space={"1": ["cup"]}).digest}) == 4


def test_a_specification_with_one_can_be_a_key_and_comes_back_from_text() -> None:
    partly = spec(label_space=SPACE)
    again = FederationSpec.model_validate_json(partly.model_dump_json())
    assert again == partly
    assert {partly.data: 1}[again.data] == 1
    assert parse_spec(yaml.safe_load(partly.to_yaml()), source="x") == partly


def test_names_in_yaml_need_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("data:\n  kind: coco\n  name: mine\n  label_space: { 010: [no, 1e3], cam2: [2.50] }\n")
    assert load_spec(path).data.label_space == {"010": ("no", "1e3"), "cam2": ("2.50",)}


def test_an_option_sets_one_device() -> None:
    found = with_fields(spec(label_space=SPACE), {"data.label_space.1": ["bin", "cup"]}, source="-s").data
    assert found.label_space == {"1": ("bin", "cup"), "2": ("bin",)}


def test_references_keep_the_label_spaces() -> None:
    partly = spec(label_space=SPACE)
    assert twin(partly).data.label_space == local_only(partly, "1").data.label_space == partly.data.label_space
    assert is_twin(partly, twin(partly))
    assert is_local_only(partly, local_only(partly, "2"))
    assert not is_twin(partly, twin(spec()))


def test_two_splits_of_the_street_have_one_twin_only_without_label_spaces() -> None:
    street = parse_spec({"data": {**STREET, "split": 20}}, source="x")
    assert twin(street).data == twin(parse_spec({"data": STREET}, source="x")).data
    partly = with_fields(street, {"data.label_space": {"20": ["chair"]}}, source="-s")
    assert twin(partly).data == partly.data.model_copy(update={"pooled": True})


def test_counts_tell_no_object_from_not_labelled() -> None:
    counts = {"1": {"cup": 3, "bin": 0}, "2": {"cup": 0, "bin": 0}, "3": {"cup": 0, "bin": 1}}
    assert by_label_space(SPACE, counts) == {
        "1": {"cup": 3, "bin": None},
        "2": {"cup": None, "bin": 0},
        "3": {"cup": 0, "bin": 1},
    }
    assert by_label_space(None, counts) == counts


class OwnDetector(Detector):
    """A detector of another package."""

    def forward(self, images: Any) -> Any:
        raise NotImplementedError

    def loss(self, outputs: Any, targets: Any) -> dict[str, Any]:
        raise NotImplementedError

    def predict(self, outputs: Any, **options: Any) -> list[Any]:
        raise NotImplementedError


class OwnSpec(OwnDetectorSpec):
    """The specification of that detector."""

    implementation: ClassVar[str] = f"{__name__}:OwnDetector"

    kind: Literal["own"] = "own"


class Following(OwnDetector):
    masks_unlabelled: ClassVar[bool] = True


def test_a_detector_without_the_rule_is_refused() -> None:
    require_masks(spec(), OwnDetector)
    for kind in (Following, FcosLite0):
        require_masks(spec(label_space=SPACE), kind)
    with pytest.raises(SpecError) as refused:
        require_masks(spec(label_space=SPACE), OwnDetector)
    text = str(refused.value)
    assert text.startswith("data.label_space: expected none, because detector.kind yolov3-tiny has no rule for unlabel")
    assert "OwnDetector.masks_unlabelled is false" in text


def test_a_run_with_it_is_refused_before_it_starts() -> None:
    require_kinds(spec().model_copy(update={"detector": OwnSpec()}))
    with pytest.raises(SpecError, match=r"^data\.label_space: expected none, because detector\.kind own has no rule"):
        require_kinds(spec(label_space=SPACE).model_copy(update={"detector": OwnSpec()}))


def test_silos_with_their_own_images_have_label_spaces_of_clients_alone(tmp_path: Path) -> None:
    """Nobody has all images, so that only the specification can tell a mistyped client."""
    data = {"kind": "voc-folders", "name": "mine", "label_space": {"x": ["cup"], "z": ["bin"]}}
    silos = parse_spec({"data": data, "participation": {"clients": ["x", "y"], "check_load": True}}, source="x")
    settings = Settings(home=tmp_path, pools=PoolSettings(silos={"x": "one", "y": "two"}))
    with pytest.raises(SpecError, match=r"^data\.label_space: expected clients of participation\.clients, .*found z$"):
        pin(silos, settings)
    right = with_fields(silos, {"data.label_space": {"x": ["cup"]}}, source="-s")
    assert pin(right, settings) == right
