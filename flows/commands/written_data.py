"""Write a data set to a new folder, for ``fedbench data make`` and ``fedbench data split``."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tasks.errors import DataError
from tasks.spec.clients import ByFolder
from tasks.spec.data import Coco, DataSpec, SyntheticStreet, VocFolders, Yolo

if TYPE_CHECKING:
    from tasks.data.samples import FederatedData

WrittenForm = Literal["coco", "coco2017", "voc", "yolo"]
MadeForm = Literal["street", "coco", "coco2017", "voc", "yolo"]
# The fields that read a written set, without its name.
FIELDS: dict[MadeForm, str] = {
    "street": "kind: federated-street",
    "coco": "kind: coco",
    "coco2017": "kind: coco",
    "voc": "kind: voc-folders",
    "yolo": "kind: yolo, clients: {kind: folders}",
}


def write_synthetic(spec: SyntheticStreet, form: MadeForm, folder: Path, cache: Path) -> None:
    """Write the set to ``folder``.

    Held-out images are among the training images: ``data.holdout`` of the written set holds out the same.

    Raises:
        DataError: the set cannot be written.
    """
    from tasks.data.catalog import load_data
    from tasks.data.export import WRITERS
    from tasks.data.synthetic import CONTENTS, make_synthetic_street

    spec = spec.model_copy(update={"holdout": None})
    drawn = make_synthetic_street(spec, cache / spec.kind)
    with _draft(folder) as draft:
        if form == "street":
            shutil.copytree(drawn, draft, ignore=shutil.ignore_patterns(CONTENTS))
        else:
            WRITERS[form](load_data(spec, root_of=lambda name: None, cache=cache), draft)


def write_split(data: FederatedData, form: WrittenForm, folder: Path) -> str:
    """Write ``data`` and read them again. Return the fields of ``data`` that a run needs, as YAML.

    Raises:
        DataError: the set cannot be written, or the written set cannot be read: a class is in no training image.
    """
    from tasks.data.catalog import load_data
    from tasks.data.export import WRITERS

    fields = f"{FIELDS[form]}, name: mine"
    turned = any(sample.turn != 1 for part in (data.train, data.test) for own in part.values() for sample in own)
    # Boxes refer to the images as read. Their files are copied as they are.
    exif: Literal["applied", "as-stored"] = "applied" if turned else "as-stored"
    if turned:
        fields += ", exif: applied"
    in_order = form == "yolo" or list(data.classes) == sorted(data.classes)
    if not in_order:
        fields += f", classes: {json.dumps(data.classes, ensure_ascii=False)}"
    with _draft(folder) as draft:
        WRITERS[form](data, draft)
        classes = None if in_order else data.classes
        written: DataSpec
        if form == "yolo":
            written = Yolo(name="mine", exif=exif, classes=classes, clients=ByFolder())
        else:
            written = (VocFolders if form == "voc" else Coco)(name="mine", exif=exif, classes=classes)
        try:
            load_data(written, root_of=lambda name: draft, cache=draft)
        except DataError as error:
            raise DataError(str(error).replace(str(draft), str(folder))) from None
    return fields


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
