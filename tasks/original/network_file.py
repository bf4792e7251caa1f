"""Read YOLOv3's outputs from a Darknet cfg, the file that ``model_def`` names: anchors, scales and classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tasks.documents.regular_file import open_regular
from tasks.documents.text_number import read_decimal
from tasks.errors import SpecError

# The number of convolutions in the cfg files of this benchmark's networks.
CONVOLUTIONS = {75: "yolov3", 13: "yolov3-tiny"}
MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class NetworkFile:
    """The outputs in a cfg. ``anchors`` are (width, height) in pixels; ``masks`` are by scale, finest scale first."""

    kind: str
    anchors: tuple[tuple[float, float], ...]
    masks: tuple[tuple[int, ...], ...]
    classes: int


def read_network(path: Path) -> NetworkFile:
    """Read a cfg.

    Raises:
        SpecError: the file cannot be read, is not a cfg, or is for another network. The message names the section and
            key.
    """
    sections = _sections(path)
    kinds = [name for name, _ in sections]
    convolutions = kinds.count("convolutional")
    kind = CONVOLUTIONS.get(convolutions)
    outputs = [values for name, values in sections if name == "yolo"]
    if kind is None or not outputs:
        known = " or ".join(f"{count} ({name})" for count, name in CONVOLUTIONS.items())
        raise SpecError(
            f"{path}: {convolutions} [convolutional] and {len(outputs)} [yolo] sections; expected a cfg with {known} "
            "convolutions"
        )
    numbers = [_numbers(path, output, "anchors") for output in outputs]
    if any(found != numbers[0] for found in numbers) or len(numbers[0]) % 2:
        raise SpecError(f"{path}: [yolo] anchors: expected the same pairs of numbers in all of them")
    masks = [tuple(int(value) for value in _numbers(path, output, "mask")) for output in outputs]
    classes = {int(_numbers(path, output, "classes")[0]) for output in outputs}
    if len(classes) != 1:
        raise SpecError(f"{path}: [yolo] classes: expected one number, found {', '.join(map(str, sorted(classes)))}")
    anchors = tuple(zip(numbers[0][::2], numbers[0][1::2], strict=True))
    return NetworkFile(kind, anchors, tuple(reversed(masks)), classes.pop())


def _sections(path: Path) -> list[tuple[str, dict[str, str]]]:
    try:
        with open_regular(path) as file:
            text = file.read(MAX_BYTES).decode()
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SpecError(f"{path}: expected a Darknet cfg, found text that is not UTF-8") from None
    sections: list[tuple[str, dict[str, str]]] = []
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            sections.append((line[1:-1].strip(), {}))
        elif "=" in line and sections and not line.startswith(("#", ";")):
            key, _, value = line.partition("=")
            sections[-1][1][key.strip()] = value.strip()
    return sections


def _numbers(path: Path, section: dict[str, str], key: str) -> list[float]:
    try:
        return [read_decimal(item.strip()) for item in section[key].split(",")]
    except KeyError:
        raise SpecError(f"{path}: [yolo] {key}: missing") from None
    except ValueError:
        raise SpecError(f"{path}: [yolo] {key}: expected numbers, found {section[key][:80]!r}") from None
