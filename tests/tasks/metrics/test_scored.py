"""The detections of a scored model are read from bytes as they were, and pool the images of several sets."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest

from tasks.errors import DataError
from tasks.metrics import scored as module
from tasks.metrics.scored import ScoredImages, ScoredModel
from tasks.metrics.voc import evaluate_voc
from tests.tasks.metrics.scenes import CLASSES, random_scene


def scored_model(seed: int, sets: int = 2) -> ScoredModel:
    """Return random detections of ``sets`` sets of images."""
    random = np.random.default_rng(seed)
    scenes = [random_scene(random) for _ in range(sets)]
    return ScoredModel(
        CLASSES, 0.2, 3,
        tuple(
            ScoredImages((str(number),), "test", f"{number:064x}", tuple(truth), tuple(found))
            for number, (truth, found) in enumerate(scenes, 1)
        ),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_bytes_hold_every_image_as_it_was(seed: int) -> None:
    scored = scored_model(seed)
    data = scored.to_bytes()
    again = ScoredModel.from_bytes(data, source="object")
    assert again.to_bytes() == data == scored.to_bytes()
    assert (again.classes, again.score_threshold, again.max_detections, again.personal) == (CLASSES, 0.2, 3, False)
    for one, other in zip(scored.sets, again.sets, strict=True):
        assert (one.clients, one.on, one.digest, len(one)) == (other.clients, other.on, other.digest, len(other))
        for found, read in zip(one.detections, other.detections, strict=True):
            for name in ("boxes", "scores", "labels"):
                np.testing.assert_array_equal(getattr(found, name), getattr(read, name))
        for (boxes, labels, difficult), read_truth in zip(one.truth, other.truth, strict=True):
            np.testing.assert_array_equal(boxes, read_truth[0])
            np.testing.assert_array_equal(labels, read_truth[1])
            np.testing.assert_array_equal(np.zeros(len(labels)) if difficult is None else difficult, read_truth[2])


def test_matches_of_a_set_have_its_average_precision() -> None:
    for seed in range(30):
        scored = scored_model(seed)
        for item in scored.sets:
            options = {"score_threshold": 0.2, "max_per_class": 3}
            expected = evaluate_voc(item.truth, item.detections, CLASSES, **options)  # type: ignore[arg-type]
            matches = item.matches(scored)
            recall = [
                int(matches.of_class(label).sum()) / wanted if wanted else None
                for label, wanted in enumerate(matches.wanted(len(CLASSES)))
            ]
            assert recall == list(expected.recall_per_class.values())
            assert int(matches.found.sum()) == int(matches.right.sum())


def test_matches_of_sampled_images_are_the_matches_of_the_whole() -> None:
    """A bootstrap over images repeats rows of the matches, and need not compare boxes again."""
    random = np.random.default_rng(5)
    for seed in range(30):
        scored = scored_model(seed, sets=1)
        (item,) = scored.sets
        chosen = random.integers(0, len(item), len(item))
        sample = replace(
            item,
            truth=tuple(item.truth[image] for image in chosen),
            detections=tuple(item.detections[image] for image in chosen),
        )
        whole, drawn = item.matches(scored), sample.matches(scored)
        times = np.bincount(chosen, minlength=len(item))
        expected = np.repeat(np.stack([whole.scores, whole.labels, whole.right, whole.ignored]), times[whole.images], 1)
        found = np.stack([drawn.scores, drawn.labels, drawn.right, drawn.ignored])
        assert sorted(map(tuple, expected.T.tolist())) == sorted(map(tuple, found.T.tolist()))


def test_several_sets_pool_their_images() -> None:
    scored = scored_model(3, sets=3)
    assert len(scored.truth) == sum(len(item) for item in scored.sets) == len(scored.detections)
    assert len(scored.matches.object_labels) == sum(len(item.matches(scored).object_labels) for item in scored.sets)
    held = replace(scored, sets=(scored.sets[0], replace(scored.sets[1], on="holdout")))
    assert [item.clients for item in held.on("holdout").sets] == [("2",)]
    assert [item.clients for item in held.on("test").sets] == [("1",)]


def test_damaged_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = scored_model(1).to_bytes()
    for damaged in (b"", b"no archive", data[: len(data) // 2], data[:-40] + bytes(40)):
        with pytest.raises(DataError, match=r"^object: "):
            ScoredModel.from_bytes(damaged, source="object")
    with np.load(io.BytesIO(data)) as file:
        arrays = {name: file[name] for name in file.files}
    for changed, message in (
        ({"0/truth/labels": None}, "set 0: truth: expected the arrays"),
        ({"1/detections/counts": np.zeros(1, np.int64)}, "set 1: detections: counts"),
        ({"0/detections/boxes": np.array([{}], object)}, "damaged file"),
        ({"index.json": np.frombuffer(b"{}", np.uint8)}, "index.json"),
        ({"index.json": np.frombuffer(b'{"version": 9}', np.uint8)}, "9 is newer than this fedbench"),
    ):
        other = {name: array for name, array in (arrays | changed).items() if array is not None}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **other)
        with pytest.raises(DataError, match=message):
            ScoredModel.from_bytes(buffer.getvalue(), source="object")
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    with pytest.raises(DataError, match="at most 100 bytes unpacked"):
        ScoredModel.from_bytes(data, source="object")
