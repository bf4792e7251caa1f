"""Findings of the readers that are not mistakes but may lower the metrics, and a few lines of text about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tasks.data.pixels import turned
from tasks.spec.data import DataSpec, Exif, SyntheticStreet

_NAMED = 5  # most places in one line
# The text for each value of Oriented.fits, after a count of annotations' sizes.
_FITS = {
    "as-stored": "fit the pixels as stored",
    "applied": "fit them turned",
    "both": "fit both",
    "neither": "fit neither",
    "not stated": "are not stated",
}


@dataclass(frozen=True)
class Oriented:
    """An image with an EXIF orientation other than 1, its stored size, and the size in its annotation."""

    where: str
    orientation: int
    size: tuple[int, int]
    stated: tuple[int, int] | None

    @property
    def fits(self) -> str:
        """Which reading of the pixels gives the annotation's size."""
        if self.stated is None:
            return "not stated"
        stored, shown = self.size == self.stated, turned(self.size, self.orientation) == self.stated
        return {(True, True): "both", (True, False): "as-stored", (False, True): "applied"}.get(
            (stored, shown), "neither"
        )


@dataclass
class Notes:
    """The findings, as lists by kind. A string is the place that a message names: a file, or an object in a file."""

    oriented: list[Oriented] = field(default_factory=list)
    deep: list[str] = field(default_factory=list)
    emptied: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    several_files: list[str] = field(default_factory=list)

    def messages(self, spec: DataSpec) -> list[str]:
        """Return one line for each kind of finding in the data of ``spec``."""
        if isinstance(spec, SyntheticStreet):
            return []
        lines = []
        if self.emptied:
            lines.append(
                f"{len(self.emptied)} boxes left out: they are empty once they are cut to their image and stored in "
                f"32 bits: {named(self.emptied)}"
            )
        if self.duplicates:
            done = "only the first of each is read" if spec.drop_duplicate_objects else (
                "each one more costs recall and mAP; data.drop_duplicate_objects=true reads the first alone"
            )  # fmt: skip
            lines.append(
                f"{len(self.duplicates)} objects repeat another one of their image, with the same class and box "
                f"({done}): {named(self.duplicates)}"
            )
        if self.oriented:
            lines.append(self._orientations(spec.exif))
        if self.deep:
            lines.append(
                f"{len(self.deep)} images have more than 8 bits a channel: of 16 bits the upper 8 are read "
                f"(value // 256): {named(self.deep)}"
            )
        if self.several_files:
            lines.append(
                f"{len(self.several_files)} images have several files, of which <filename> names one: "
                f"{named(self.several_files)}"
            )
        return lines

    def _orientations(self, exif: Exif) -> str:
        counts = Counter(item.fits for item in self.oriented)
        fits = ", ".join(f"{counts[kind]} {meaning}" for kind, meaning in _FITS.items() if counts[kind])
        fitting = [reading for reading in ("as-stored", "applied") if counts[reading]]
        if fitting == [exif]:
            advice = f"data.exif={exif} fits, as it is set"
        elif len(fitting) == 1:
            advice = f"data.exif={fitting[0]} fits"
        elif fitting:
            advice = "no reading fits all: write the pixels turned, without EXIF"
        else:
            drawn = "set data.exif=applied" if exif == "as-stored" else "keep it, else set data.exif=as-stored"
            advice = (
                f"the sizes do not tell which reading fits, and data.exif is {exif}. Most annotation tools and OpenCV "
                f"show such images turned: if the boxes were drawn on turned images, {drawn}"
            )
        return (
            f"{len(self.oriented)} images have an EXIF orientation other than 1; of their annotations' sizes {fits}; "
            f"{advice}: {named([f'{item.where} ({item.orientation})' for item in self.oriented])}"
        )


def named(places: Sequence[str]) -> str:
    """Return the first few of ``places`` in one line, and how many more there are."""
    more = f", and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
    return ", ".join(places[:_NAMED]) + more
