"""Data sets divided anew: fractions of devices, whole groups, and one test set or several."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data.samples import FederatedData, ImageSample
from tasks.data.split import redraw, split_data
from tasks.data.whole_groups import crossing, every_test_image
from tasks.errors import DataError
from tests.tasks.data.pictures import picture
from tests.tasks.data.test_whole_groups import data_of, hashes_of, image, keys


def whole(*counts: int, groups: int = 10**6) -> FederatedData:
    """Return data without test images. Images ``groups`` apart in a device's order are near-duplicates."""
    numbers = iter(range(10**6))
    return data_of(
        {
            f"d{row}": [image(f"{next(numbers) % groups}x{place}") for place in range(count)]
            for row, count in enumerate(counts)
        },
        [],
    )


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=4), st.floats(0.1, 0.9), st.integers(0, 2**32 - 1),
    st.integers(3, 60),
)  # fmt: skip
def test_groups_stay_whole_and_each_device_is_divided(
    counts: list[int], fraction: float, seed: int, groups: int
) -> None:
    data = whole(*counts, groups=groups)
    hashes = hashes_of(data)
    try:
        new = redraw(data, fraction, seed, hashes)
    except DataError:
        assert max(counts) * fraction < 10  # few images
        return
    assert {device: keys(own) for device, own in redraw(data, fraction, seed, hashes).train.items()} == {
        device: keys(own) for device, own in new.train.items()
    }
    trained = [sample for own in new.train.values() for sample in own]
    assert crossing(trained, every_test_image(new), hashes) == ({}, {})
    assert sorted(keys((*trained, *every_test_image(new)))) == sorted(
        key for own in data.train.values() for key in keys(own)
    )
    for device, own in new.train.items():
        assert own
        assert keys(own) == [key for key in keys(data.train[device]) if key in keys(own)]
    if len({key.split("x")[0] for own in data.train.values() for key in keys(own)}) == sum(counts):  # nothing is alike
        for device, count in zip(data.train, counts, strict=True):
            assert count - len(new.train[device]) == min(int(fraction * count + 0.5), count - 1)


def test_the_draw_depends_on_the_seed() -> None:
    data = whole(40)
    draws = [set(keys(every_test_image(redraw(data, 0.2, seed, hashes_of(data))))) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert {len(draw) for draw in draws} == {8}


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DataError, match=r"no group of images fits a test fraction of 0\.2; expected more images"):
        redraw(whole(2, 1), 0.2, 1, {})


@pytest.fixture
def pictures(tmp_path: Path) -> FederatedData:
    """Return images in files: 0 to 9 on two devices, a test set of 10, 20 and 11. Image 20 is nearly image 0."""

    def drawn(number: int, quality: int = 95) -> ImageSample:
        path = tmp_path / f"{number}.jpg"
        picture(number % 20).save(path, quality=quality)
        return ImageSample(path, 96, 64, image("").boxes, image("").labels, path.stem, f"content {number}")

    train = {"a": [drawn(n) for n in range(5)], "b": [drawn(n) for n in range(5, 10)]}
    return data_of(train, [drawn(10), drawn(20, 60), drawn(11)])


def test_the_given_division_stays_but_for_near_duplicates(pictures: FederatedData, tmp_path: Path) -> None:
    done = split_data(pictures, fraction=None, group=True, cache=tmp_path / "hashes")
    assert (done.to_test, done.to_training, done.crossed, done.cross) == (0, 1, 1, 0)
    assert keys(done.data.train["a"]) == ["0", "1", "2", "3", "4", "20"]
    assert keys(done.data.test["b"]) == ["10", "11"]


def test_one_test_set_becomes_several_and_back(pictures: FederatedData, tmp_path: Path) -> None:
    cache = tmp_path / "hashes"
    with pytest.raises(DataError, match="a test fraction divides each device's images anew; 3 have none, the first "):
        split_data(pictures, fraction=0.4, group=False, cache=cache)
    with pytest.raises(DataError, match="because each device gets a test set of its own; 2 have none"):
        split_data(pictures, fraction=None, group=True, per_device=True, cache=cache)
    bare = data_of({device: list(own) for device, own in pictures.train.items()}, [])
    done = split_data(bare, fraction=0.4, group=True, per_device=True, cache=cache)
    assert {device: len(own) for device, own in done.data.test.items()} == {"a": 2, "b": 2}
    for device, own in bare.train.items():
        assert sorted(keys((*done.data.train[device], *done.data.test[device]))) == sorted(keys(own))
    again = split_data(done.data, fraction=0.2, group=True, per_device=False, cache=cache)
    assert len(again.data.test["a"]) == 2
    assert again.data.test["a"] is again.data.test["b"]
    kept = split_data(done.data, fraction=0.2, group=True, cache=cache)
    assert [len(own) for own in kept.data.test.values()] == [1, 1]


def test_the_test_set_of_a_single_device_is_its_own(pictures: FederatedData, tmp_path: Path) -> None:
    one = data_of({"a": list(pictures.train["a"])}, list(pictures.test["a"]))
    done = split_data(one, fraction=0.5, group=True, cache=tmp_path / "hashes")
    assert len(done.data.train["a"]) == len(done.data.test["a"]) == 4
    assert done.cross == 0


def test_without_grouping_groups_that_cross_are_counted(pictures: FederatedData, tmp_path: Path) -> None:
    every = [*pictures.train["a"], *pictures.test["a"]]
    found = set()
    for seed in range(20):
        done = split_data(data_of({"a": every}, []), fraction=0.5, seed=seed, group=False, cache=tmp_path / "hashes")
        together = any({"0", "20"} <= set(keys(part["a"])) for part in (done.data.train, done.data.test))
        assert done.cross == (0 if together else 1)
        found.add(done.cross)
    assert found == {0, 1}
