"""What stands beside the network in an exported file: how to use it, its origin, and the licences that apply."""

from __future__ import annotations

import json
from typing import Literal

from tasks.detectors.base import Detector
from tasks.detectors.state import state_of, state_sha256
from tasks.models.file import HEADER_KEY, ModelCard
from tasks.portable.network import INPUT, OUTPUTS
from tasks.spec.training import EvaluationSpec

Pixels = Literal["uint8", "float32"]

OWN_LICENCE = "The network's code is fedbench's (Apache-2.0)."


def contents(detector: Detector, card: ModelCard, rules: EvaluationSpec, pixels: Pixels) -> dict[str, str]:
    """Return the entries of an exported file, each as text.

    ``fedbench`` is the whole card, as in a model file. ``weights_sha256`` equals that of the round's record.
    """
    boxes, scores, labels = OUTPUTS
    return {
        HEADER_KEY: json.dumps(card.model_dump(mode="json"), allow_nan=False),
        "classes": json.dumps(card.classes, ensure_ascii=False),
        "width": str(detector.width),
        "height": str(detector.height),
        "input": f"{INPUT}: {pixels} [1, 3, {detector.height}, {detector.width}], RGB, 0 to 255; the whole image "
        "stretched to this size",
        "outputs": f"{boxes}: float32 [n, 4], xmin, ymin, xmax, ymax in pixels of the input; {scores}: float32 [n], "
        f"descending; {labels}: int64 [n], indices of classes",
        "score_threshold": str(rules.score_threshold),
        "nms_iou": str(rules.nms_iou),
        "max_detections": str(rules.max_detections),
        "weights_sha256": state_sha256(state_of(detector)),
        "licences": "\n".join((OWN_LICENCE, *card.notes)),
    }
