"""The model file: a detector as one self-describing safetensors file, usable without a run, store or MLflow.

Its header has, under the key ``fedbench``, the :class:`ModelCard` as JSON: how to build the detector, the names of its
classes, its training data and its figures. The tensors are those of ``state_dict``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkstemp
from typing import Annotated, Any, Literal

import safetensors
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from tasks.detectors.base import Detector
from tasks.detectors.registry import build_detector
from tasks.detectors.state import tensor_faults
from tasks.documents.json_text import read_json
from tasks.documents.regular_file import require_regular
from tasks.errors import DataError, SpecError
from tasks.plain_text import LIMIT, markdown, plain_name
from tasks.spec.base import Frozen, Sha256, parse
from tasks.spec.data import Exif
from tasks.spec.kinds import AnyDetector
from tasks.spec.training import PART_NAMES, EvaluationSpec, ScoredOn

HEADER_KEY = "fedbench"
CARD_VERSION: Literal[1] = 1
VOUCHED = (
    "The weights are those of the round above: the run's record has their sha256. `fedbench verify` compares every "
    "file of a registered model with that record and the installed fedbench; MLflow itself checks nothing.",
    "Each client reports its own counts of images and boxes, its losses and its evaluations. They are its own word: "
    "nobody else has seen its images. The figures above are means of these reports, weighted by the reported counts.",
    "The weights are the mean of the clients' updates, weighted by the reported counts. What a client trained on is "
    "not checked.",
)
OWN_VOUCHED = (
    "The weights are the client's own of the round above: the run's record has the sha256 of the objects that they are "
    "put together from. `fedbench verify` compares every file of a registered model with that record and the installed "
    "fedbench; MLflow itself checks nothing.",
    "The client reports its own counts of images and boxes, its losses and its evaluations. They are its own word: "
    "nobody else has seen its images. What it trained on is not checked.",
)
_NAMED = 5  # most wrong tensors in one message


class ModelCard(Frozen):
    """The description of a detector in its model file.

    Figures are those on the images ``on``, from 0 to 1; losses are per image.
    """

    version: Literal[1] = CARD_VERSION
    detector: AnyDetector
    classes: Annotated[tuple[str, ...], Field(min_length=1)] = Field(description="Names, by class index.")
    data: dict[str, Any] | None = Field(None, description="The data specification, as JSON.")
    clients: tuple[str, ...] | None = Field(None, description="Clients on whose images the figures were measured.")
    on: ScoredOn = Field("test", description="test: the figures are on test sets; holdout: on held-out images.")
    evaluation: EvaluationSpec | None = Field(None, description="The rules by which the figures were measured.")
    spec_digest: Sha256 | None = Field(None, description="Digest of the federation's specification.")
    federation: str | None = None
    round: int | None = Field(None, ge=0)
    code_version: str | None = Field(None, description="Version of fedbench that trained it.")
    metrics: dict[str, float | None] = Field(
        default_factory=dict, description="map50_voc10, map50_voc07, map50_coco, map_coco, recall, loss."
    )
    per_class: dict[str, float | None] = Field(
        default_factory=dict, description="VOC 2010 AP at IoU 0.5 by class; null for a class without truth."
    )
    notes: tuple[str, ...] = Field((), description="Licences, and how the weights came about.")

    @property
    def exif(self) -> Exif:
        """How training read the EXIF orientation; as stored if the card does not say."""
        return "applied" if self.data is not None and self.data.get("exif") == "applied" else "as-stored"


def write_model(path: Path, card: ModelCard, state: Mapping[str, Tensor]) -> None:
    """Write ``state`` (CPU tensors) with ``card`` in the header. The file appears whole or not at all.

    Equal cards and states give equal bytes.

    Raises:
        DataError: the file cannot be written.
    """
    header = {HEADER_KEY: json.dumps(card.model_dump(mode="json"), allow_nan=False)}
    tensors = {name: state[name].contiguous() for name in sorted(state)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = mkstemp(suffix=".tmp", dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        try:
            save_file(tensors, temporary, metadata=header)
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"{path}: the model file cannot be written: {error}") from None


def read_card(path: Path) -> ModelCard:
    """Read the card of a model file. No tensor is read.

    Raises:
        DataError: the file is missing or not a safetensors file, or has no valid card.
    """
    _require_file(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise _not_safetensors(path, error) from None
    text = header.get(HEADER_KEY)
    if text is None:
        keys = ", ".join(sorted(header)) or "none"
        raise DataError(f"{path}: expected a model file, with the key {HEADER_KEY!r} in its header, found keys: {keys}")
    try:
        document = read_json(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: header {HEADER_KEY!r}: expected JSON: {error}") from None
    try:
        return parse(ModelCard, document, source=f"{path}: header {HEADER_KEY!r}", newest=CARD_VERSION)
    except SpecError as error:
        raise DataError(str(error)) from None


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, on the CPU. The card is not read.

    Raises:
        DataError: the file is missing or not a safetensors file.
    """
    _require_file(path)
    try:
        return load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise _not_safetensors(path, error) from None


def load_model(path: Path) -> tuple[Detector, ModelCard]:
    """Return the detector of a model file, in evaluation mode on the CPU, and its card.

    Raises:
        DataError: as :func:`read_card`, or tensors are not the detector's by name, shape or type, or hold NaN or
            infinity. The message names them.
    """
    card = read_card(path)
    detector = build_detector(card.detector, len(card.classes), seed=0)
    state = read_state(path)
    wrong = list(tensor_faults(detector.state_dict(), state))
    if wrong:
        rest = f"; and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise DataError(f"{path}: the tensors are not this detector's: {'; '.join(wrong[:_NAMED])}{rest}")
    detector.load_state_dict(state)
    return detector.eval(), card


def card_text(card: ModelCard, *, uri: str | None = None, client: str | None = None) -> str:
    """Return the card as Markdown. With ``uri``, it says how to serve that model of MLflow's registry.

    client: whose own model it is; None for a shared one.
    """
    vouched = VOUCHED if client is None else OWN_VOUCHED
    size = f"{card.detector.width} × {card.detector.height}"
    lines = [
        f"# {markdown(card.federation or card.detector.kind)}",
        "",
        f"`{card.detector.kind}` of {len(card.classes)} classes: "
        f"{', '.join(markdown(plain_name(name)) for name in card.classes)}. "
        f"Images are stretched to {size} pixels.",
    ]
    origin = {
        "federation": card.federation,
        "client": client,
        "round": card.round,
        "specification (sha256)": card.spec_digest,
        "fedbench": card.code_version,
    }
    lines += _table("Origin", ("", ""), {name: value for name, value in origin.items() if value is not None})
    lines += _table("Data", ("field", "value"), card.data or {})
    lines += _table(f"Figures on the {PART_NAMES[card.on]} data", ("measure", "value"), card.metrics)
    lines += _table(
        f"Classes on the {PART_NAMES[card.on]} data",
        ("class", "AP at IoU 0.5 (VOC 2010)"),
        card.per_class,
    )
    if card.federation is not None:
        lines += ["", "## What is vouched for", "", *(f"- {line}" for line in vouched)]
    if card.notes:
        lines += ["", "## Notes", "", *(f"- {markdown(note)}" for note in card.notes)]
    return "\n".join([*lines, "", *_usage(uri)]) + "\n"


def _table(title: str, head: tuple[str, str], rows: Mapping[str, Any]) -> list[str]:
    if not rows:
        return []
    shown = [f"| {markdown(plain_name(name, LIMIT))} | {_cell(value)} |" for name, value in rows.items()]
    return ["", f"## {title}", "", f"| {head[0]} | {head[1]} |", "| --- | --- |", *shown]


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return markdown(text)


def _usage(uri: str | None) -> list[str]:
    lines = [
        "## Use",
        "",
        "The weights are a safetensors file whose header holds this card as JSON:",
        "",
        "```python",
        "from pathlib import Path",
        "from tasks.models.file import load_model",
        "",
        'detector, card = load_model(Path("model.safetensors"))',
        "```",
    ]
    if uri is not None:
        lines += [
            "",
            "To serve it over HTTP: `fedbench serve` where the run's store is. Elsewhere MLflow's own server runs the "
            "code that is stored with the model and checks nothing, so `fedbench verify` comes first:",
            "",
            "```",
            f"fedbench verify {uri} --save model",
            "mlflow models serve -m model --env-manager local --port 5001",
            "curl http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' \\",
            """  -d '{"dataframe_records": [{"image": "'$(base64 < street.jpg | tr -d '\\n')'"}]}'""",
            "```",
            "",
            "The answer has, for each image, its `detections`: class, score and box (xmin, ymin, xmax, ymax in pixels "
            'of that image). Optional: `"params": {"score_threshold": 0.25, "max_detections": 100}`.',
        ]
    return lines


def _require_file(path: Path) -> None:
    try:
        require_regular(path)
    except (OSError, ValueError) as error:
        found = error.strerror if isinstance(error, OSError) and path.exists() and not path.is_dir() else "no such file"
        raise DataError(f"{path}: {found}; expected a model file (safetensors)") from None


def _not_safetensors(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: expected a safetensors file: {error}")
