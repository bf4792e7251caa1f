"""Findings that are not mistakes but may lower the metrics, and those that the readers of data sets collect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tasks.data.pixels import turned
from tasks.spec.data import DataSpec, Exif, SyntheticStreet

MOST_NAMED = 5  # places in one line
# The text for each value of Oriented.fits, after a count of annotations' sizes.
_FITS = {
    "as-stored": "fit the pixels as stored",
    "applied": "fit them turned",
    "both": "fit both",
    "neither": "fit neither",
    "not stated": "are not stated",
}


@dataclass(frozen=True)
class Finding:
    """A line about a kind of finding. ``items`` are the places where it was found, or short texts about them."""

    summary: str
    items: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the summary, the first few items, and how many more there are."""
        return f"{self.summary}: {named(self.items)}" if self.items else self.summary


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
    without_labels: list[str] = field(default_factory=list)
    shared_labels: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)  # whole lines: which part of a data set is used for what

    def findings(self, spec: DataSpec) -> list[Finding]:
        """Return the kinds of findings in the data of ``spec``."""
        if isinstance(spec, SyntheticStreet):
            return []
        found = [Finding(line) for line in self.parts]
        if self.without_labels:
            found.append(
                Finding(
                    f"{len(self.without_labels)} images have no label file, and count as images without objects",
                    tuple(self.without_labels),
                )
            )
        if self.shared_labels:
            found.append(
                Finding(
                    f"{len(self.shared_labels)} label files belong to several images, which differ in their suffix",
                    tuple(self.shared_labels),
                )
            )
        if self.emptied:
            found.append(
                Finding(
                    f"{len(self.emptied)} boxes left out: they are empty once they are cut to their image and stored "
                    "in 32 bits",
                    tuple(self.emptied),
                )
            )
        if self.duplicates:
            done = "only the first of each is read" if spec.drop_duplicate_objects else (
                "each one more costs recall and mAP; data.drop_duplicate_objects=true reads the first alone"
            )  # fmt: skip
            found.append(
                Finding(
                    f"{len(self.duplicates)} objects repeat another one of their image, with the same class and box "
                    f"({done})",
                    tuple(self.duplicates),
                )
            )
        if self.oriented:
            found.append(self._orientations(spec.exif))
        if self.deep:
            found.append(
                Finding(
                    f"{len(self.deep)} images have more than 8 bits a channel: of 16 bits the upper 8 are read "
                    f"(value // 256)",
                    tuple(self.deep),
                )
            )
        if self.several_files:
            found.append(
                Finding(
                    f"{len(self.several_files)} images have several files, of which <filename> names one: "
                    f"{named(self.several_files)}",
                )
            )
        return found

    def _orientations(self, exif: Exif) -> Finding:
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
        return Finding(
            f"{len(self.oriented)} images have an EXIF orientation other than 1; of their annotations' sizes {fits}; "
            f"{advice}",
            tuple(f"{item.where} ({item.orientation})" for item in self.oriented),
        )


def named(places: Sequence[str]) -> str:
    """Return the first few of ``places`` in one line, and how many more there are."""
    more = f", and {len(places) - MOST_NAMED} more" if len(places) > MOST_NAMED else ""
    return ", ".join(places[:MOST_NAMED]) + more
