"""Reader of KITTI's object labels (Geiger et al., CVPR 2012): a text file of 15 columns for each image.

The columns are type, truncated, occluded, alpha, the box's left, top, right and bottom edge, and seven of the object in
space, which are not used. Boxes are in pixels, counted from 0, and stay as annotated. ``DontCare`` is an ignore region
of any class. All other types are classes as they are, also ``Van`` and ``Person_sitting``, which the published
evaluation does not count as wrong for ``Car`` and ``Pedestrian``.

KITTI has no labels of its test images. Training and test images are those of two lists of names.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from tasks.data.assemble import assemble_own
from tasks.data.entries import Entry, Faults, Parsed, Region, Thing, box_with_area, read_bytes, shown
from tasks.data.published import SLACK, image_called, read_numbers, read_rows
from tasks.data.samples import FederatedData
from tasks.data.voc_files import ImageFiles, list_images, read_list
from tasks.spec.data_forms import Kitti

DONT_CARE = "DontCare"
_COLUMNS = "type truncated occluded alpha left top right bottom height width length x y z rotation_y"


def load_kitti(root: Path, spec: Kitti, *, faults: Faults | None = None) -> FederatedData:
    """Read lists, labels and image headers; every image's bytes are read and hashed, none is decoded.

    If the specification lists no classes, they are the types in the training images' labels, in alphabetical order. If
    ``faults`` collects mistakes, the usable part is returned.

    Raises:
        DataError: a folder, list, file, line, box, device or image is missing or wrong, or the content is not the
            expected one; the message names the file and the line.
    """
    faults = faults or Faults()
    parsed = Parsed([], [], (), [], (spec.train, spec.test))
    images = list_images(root / spec.images, faults)
    if images is not None:
        for file, entries in ((spec.train, parsed.train), (spec.test, parsed.test)):
            _read_part(root, file, spec, images, entries, parsed, faults)
    parsed.classes = spec.classes or parsed.training_classes()
    return assemble_own(root, spec, parsed, faults, where=str(root / spec.labels), slack=SLACK)


def _read_part(
    root: Path, file: str, spec: Kitti, images: ImageFiles, entries: list[Entry], parsed: Parsed, faults: Faults
) -> None:
    """Add the images of one list to ``entries``, in its order."""
    data = read_bytes(root / file, faults)
    if data is None:
        return
    parsed.files.append((file, hashlib.sha256(data).hexdigest()))
    for name in read_list(root / file, data, images.by_stem, faults):
        image = image_called(name, images, f"{root / file}: {name}", faults)
        if image is None:
            continue
        labels = f"{'' if spec.labels == '.' else f'{spec.labels}/'}{name}.txt"
        found = [_read_line(at, line, faults) for at, line in read_rows(root, labels, parsed, faults)]
        things = tuple(item for item in found if isinstance(item, Thing))
        regions = tuple(item for item in found if isinstance(item, Region))
        inside = f"{'' if spec.images == '.' else f'{spec.images}/'}{image}"
        entries.append(Entry(str(root / labels), name, inside, None, things, regions=regions))


def _read_line(at: str, line: str, faults: Faults) -> Thing | Region | None:
    name, *texts = line.split()
    values = read_numbers(texts)
    if values is None or len(values) != _COLUMNS.count(" "):
        hint = "; a 16th column is the score of a detection" if len(texts) == _COLUMNS.count(" ") + 1 else ""
        faults.add(f"{at}: expected the 15 columns {_COLUMNS}, found {len(texts) + 1}: {shown(line)}{hint}")
        return None
    box = box_with_area(at, values[3:7], faults)
    if box is None:
        return None
    return Region(at, None, box) if name == DONT_CARE else Thing(at, name, box)
