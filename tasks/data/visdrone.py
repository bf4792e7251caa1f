"""Reader of VisDrone's form for detection in images (Zhu et al., arXiv 1804.07437): a text file for each image.

A line is ``left,top,width,height,score,category,truncation,occlusion``. Categories 1 to 10 are the classes. What the
published evaluation (VisDrone2018-DET-toolkit) does not count is not counted here:

* Category 0 are ignored regions, of any class. The toolkit also drops *objects* of which at least half is inside such
  regions (``dropObjectsInIgr.m``); here they stay objects.
* An object with score 0 is an ignore region of its class: ``saveAnnoRes.m`` turns the score around to the flag that
  ``evalRes.m`` takes for one, by the part of the detection's area inside it.
* Category 11, "others", is an ignore region of any class. The toolkit for images only leaves the class out, the one
  for videos drops detections there (``dropObjects.m``): a crane is neither of the ten classes nor background.
"""

from __future__ import annotations

from pathlib import Path

from tasks.data.assemble import assemble_own
from tasks.data.entries import Entry, Faults, Parsed, Region, Thing, box_with_area, shown
from tasks.data.published import SLACK, image_called, is_image, read_numbers, read_rows
from tasks.data.samples import FederatedData
from tasks.data.voc_files import ImageFiles, list_images
from tasks.spec.data_forms import VISDRONE_CLASSES, VisDrone

IMAGES, ANNOTATIONS = "images", "annotations"
IGNORED, OTHERS = 0, 11
_COLUMNS = "left,top,width,height,score,category,truncation,occlusion"


def load_visdrone(root: Path, spec: VisDrone, *, faults: Faults | None = None) -> FederatedData:
    """Read annotations and image headers; every image's bytes are read and hashed, none is decoded.

    If ``faults`` collects mistakes, the usable part is returned.

    Raises:
        DataError: a folder, file, line, box, device or image is missing or wrong, or the content is not the expected
            one; the message names the file and the line.
    """
    faults = faults or Faults()
    classes = spec.classes or VISDRONE_CLASSES
    parsed = Parsed([], [], classes, [], (spec.train, spec.test))
    for part, entries in ((spec.train, parsed.train), (spec.test, parsed.test)):
        _read_part(root, "" if part == "." else f"{part}/", entries, parsed, faults)
    return assemble_own(root, spec, parsed, faults, where=str(root / spec.train), slack=SLACK)


def _read_part(root: Path, prefix: str, entries: list[Entry], parsed: Parsed, faults: Faults) -> None:
    """Add the images of one part to ``entries``, in the order of their names."""
    images = list_images(root / prefix / IMAGES, faults)
    folder = root / prefix / ANNOTATIONS
    if images is None:
        return
    try:
        annotated = sorted(path.stem for path in folder.iterdir() if path.suffix == ".txt")
    except OSError as error:
        faults.add_unread(f"{folder}: the folder of annotations cannot be read: {error.strerror}")
        return
    pictured = {stem for stem, names in images.by_stem.items() if any(is_image(name) for name in names)}
    for stem in sorted({*annotated, *pictured}):
        entry = _read_image(root, prefix, stem, images, parsed, faults)
        if entry is not None:
            entries.append(entry)


def _read_image(root: Path, prefix: str, stem: str, images: ImageFiles, parsed: Parsed, faults: Faults) -> Entry | None:
    file = f"{prefix}{ANNOTATIONS}/{stem}.txt"
    image = image_called(stem, images, str(root / file), faults)
    if image is None:
        return None
    things: list[Thing] = []
    regions: list[Region] = []
    for at, line in read_rows(root, file, parsed, faults):
        found = _read_line(at, line, parsed.classes, faults)
        if isinstance(found, Thing):
            things.append(found)
        elif found is not None:
            regions.append(found)
    inside = f"{prefix}{IMAGES}/{image}"
    return Entry(str(root / file), stem, inside, None, tuple(things), regions=tuple(regions))


def _read_line(at: str, line: str, classes: tuple[str, ...], faults: Faults) -> Thing | Region | None:
    # Some published files have a comma at the end of a line. Other tools write blanks after commas.
    texts = [text.strip(" \t") for text in line.removesuffix(",").split(",")]
    values = read_numbers(texts)
    if values is None or len(values) != _COLUMNS.count(",") + 1:
        faults.add(f"{at}: expected eight numbers {_COLUMNS}, found {shown(line)}")
        return None
    left, top, width, height, score, category = values[:6]
    known = [IGNORED, *range(1, len(classes) + 1), OTHERS]
    if category not in known:
        faults.add(f"{at}: category: expected 0 to {len(classes)} or {OTHERS}, found {texts[5]}")
        return None
    if score not in (0, 1):
        faults.add(f"{at}: score: expected 0 or 1, found {texts[4]}")
        return None
    box = box_with_area(at, (left, top, left + width, top + height), faults)
    if box is None:
        return None
    if category in (IGNORED, OTHERS):
        return Region(at, None, box)
    name = classes[int(category) - 1]
    return Thing(at, name, box) if score == 1 else Region(at, name, box)
