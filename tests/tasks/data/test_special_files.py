"""A pipe, socket or device among the files of a data set is refused in every form, and nothing waits for it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field, TypeAdapter

from tasks.data.catalog import load_data
from tasks.data.export.forms import WRITERS
from tasks.data.recognise import recognise
from tasks.errors import DataError, SpecError
from tasks.spec.data import DataSpec, SyntheticStreet
from tests.special_files import SPECIAL, never_waiting, put_pipe
from tests.tasks.drawn_data import drawn_data

SPEC: TypeAdapter[DataSpec] = TypeAdapter(Annotated[DataSpec, Field(discriminator="kind")])
TINY = SyntheticStreet(train_images=40, test_images=5, width=64, height=64)


def one_of_each(root: Path) -> Iterator[Path]:
    """Yield a file of each folder and suffix."""
    seen: set[tuple[Path, str]] = set()
    for path in sorted(root.rglob("*")):
        if path.is_file() and (path.parent, path.suffix) not in seen:
            seen.add((path.parent, path.suffix))
            yield path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, DataSpec]]:
    """Return the folder and the specification of the drawn street in each form."""
    folder = tmp_path_factory.mktemp("forms")
    data = drawn_data(TINY, folder / "cache")
    found: dict[str, tuple[Path, DataSpec]] = {}
    for form, write in WRITERS.items():
        fields: dict[str, Any] = {**write(data, folder / form), "name": "mine"}
        found[form] = folder / form, SPEC.validate_python(fields)
    return found


@pytest.mark.parametrize("form", WRITERS)
def test_a_pipe_in_the_place_of_any_file_is_refused(
    written: dict[str, tuple[Path, DataSpec]], form: str, tmp_path: Path
) -> None:
    root, spec = written[form]
    places = [path.relative_to(root) for path in one_of_each(root)]
    assert len(places) >= 2
    for place in places:
        changed = tmp_path / "set"
        shutil.copytree(root, changed)
        put_pipe(changed / place)
        with never_waiting(), pytest.raises(DataError) as refused:
            load_data(spec, root_of=lambda name, changed=changed: changed, cache=tmp_path)  # type: ignore[misc]
        assert place.stem in str(refused.value), (place, str(refused.value))
        with never_waiting():
            try:
                assert recognise(changed, "mine").name == "mine"  # type: ignore[union-attr]
            except SpecError as error:
                assert str(changed) in str(error)  # noqa: PT017 - a form may need the file
        shutil.rmtree(changed)


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("form", WRITERS)
def test_an_image_that_is_no_file_is_named_with_its_kind(
    written: dict[str, tuple[Path, DataSpec]], form: str, kind: str, tmp_path: Path
) -> None:
    root, spec = written[form]
    image = next(path.relative_to(root) for path in one_of_each(root) if path.suffix == ".jpg")
    shutil.copytree(root, tmp_path / "set")
    SPECIAL[kind](tmp_path / "set" / image)
    with never_waiting(), pytest.raises(DataError) as refused:
        load_data(spec, root_of=lambda name: tmp_path / "set", cache=tmp_path)
    assert f"{tmp_path / 'set' / image}: the image cannot be read: expected a regular file, found {kind}" in str(
        refused.value
    )
