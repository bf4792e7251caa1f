"""Write a data set to a new folder, for ``fedbench data make`` and ``fedbench data split``."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from tasks.errors import DataError
from tasks.spec.data import DataSpec, SyntheticStreet

if TYPE_CHECKING:
    from tasks.data.samples import FederatedData

WrittenForm = Literal["coco", "coco2017", "voc", "yolo", "bdd100k", "visdrone", "kitti"]
MadeForm = Literal["street", "coco", "coco2017", "voc", "yolo", "bdd100k", "visdrone", "kitti"]
NAME = "mine"
_SPEC: TypeAdapter[DataSpec] = TypeAdapter(Annotated[DataSpec, Field(discriminator="kind")])


def write_synthetic(spec: SyntheticStreet, form: MadeForm, folder: Path, cache: Path) -> str:
    """Write the set to ``folder``. Return the fields of ``data`` that a run needs, as YAML.

    Held-out images are among the training images: ``data.holdout`` of the written set holds out the same.

    Raises:
        DataError: the set cannot be written.
    """
    from tasks.data.catalog import load_data
    from tasks.data.export.forms import WRITERS
    from tasks.data.synthetic import CONTENTS, make_synthetic_street

    spec = spec.model_copy(update={"holdout": None, "label_space": None})
    drawn = make_synthetic_street(spec, cache / spec.kind)
    with _draft(folder) as draft:
        if form == "street":
            shutil.copytree(drawn, draft, ignore=shutil.ignore_patterns(CONTENTS))
            return _in_yaml({"kind": "federated-street", "name": NAME})
        data = load_data(spec, root_of=lambda name: None, cache=cache)
        return _in_yaml({**WRITERS[form](data, draft), "name": NAME})


def write_split(data: FederatedData, form: WrittenForm, folder: Path) -> str:
    """Write ``data`` and read them again. Return the fields of ``data`` that a run needs, as YAML.

    Raises:
        DataError: the set cannot be written, or the written set cannot be read: a class is in no training image. Or the
            form's rounding leaves a box empty.
    """
    from tasks.data.catalog import load_data
    from tasks.data.export.forms import WRITERS

    turned = any(sample.turn != 1 for part in (data.train, data.test) for own in part.values() for sample in own)
    with _draft(folder) as draft:
        fields = {**WRITERS[form](data, draft), "name": NAME}
        if turned:  # boxes refer to the images as read, and their files are copied as they are
            fields["exif"] = "applied"
        if form != "yolo" and list(data.classes) != sorted(data.classes):
            fields["classes"] = list(data.classes)
        written = _SPEC.validate_python(fields)
        try:
            again = load_data(written, root_of=lambda name: draft, cache=draft)
        except DataError as error:
            raise DataError(str(error).replace(str(draft), str(folder))) from None
        lost = _objects(data) - _objects(again)
        if lost:
            raise DataError(f"{folder}: {lost} boxes are empty once they are rounded as {form}'s form has them")
    return _in_yaml(fields)


def _objects(data: FederatedData) -> int:
    return sum(len(sample.labels) for part in (data.train, data.test) for own in part.values() for sample in own)


def _in_yaml(fields: dict[str, Any]) -> str:
    """Return a mapping in one line of YAML, without the braces around it."""
    return ", ".join(f"{name}: {_value_in_yaml(value)}" for name, value in fields.items())


def _value_in_yaml(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{_in_yaml(value)}}}"
    is_word = isinstance(value, str) and re.fullmatch(r"[a-z][a-z0-9-]*", value)
    return value if is_word else json.dumps(value, ensure_ascii=False)  # JSON is YAML too


@contextmanager
def _draft(folder: Path) -> Iterator[Path]:
    """Yield a folder to write beside ``folder``, then rename it, so that ``folder`` never holds a part of a set.

    Raises:
        DataError: the set cannot be written.
    """
    target = folder.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
            draft = Path(temporary) / "set"
            yield draft
            os.replace(draft, target)
    except OSError as error:
        raise DataError(f"{folder}: the data set cannot be written: {error.strerror or error}") from None
