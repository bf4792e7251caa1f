"""Write a detector with its decoding as an ONNX file, and run such a file.

torch's exporter has no ONNX form of two operators: our suppression, whose ONNX form keeps the classes apart by itself,
and torchvision's RoIPool. Both are translated here.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.detectors.base import Detections, Detector
from tasks.portable.network import INPUT, OUTPUTS, PortableNetwork
from tasks.portable.select import select_by_group
from tasks.spec.training import EvaluationSpec

# The first with all that the detectors need, and old enough for runtimes of the last years.
OPSET = 18
DETECTIONS = "detections"  # name of the outputs' first dimension, whose length depends on the image


@torch.library.custom_op("fedbench::select", mutates_args=())
def select(boxes: Tensor, scores: Tensor, iou: float, threshold: float, most: int) -> Tensor:
    """Select as :class:`tasks.portable.select.Select` says. It is one operator in the exported graph."""
    return select_by_group(boxes, scores, iou, threshold, most)


@select.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float, threshold: float, most: int) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), 2, dtype=torch.int64)


def write_onnx(
    path: Path, detector: Detector, rules: EvaluationSpec, example: Tensor, entries: Mapping[str, str]
) -> None:
    """Write ``detector`` with ``rules`` to ``path``; ``entries`` become its metadata.

    example: an image of the input's size and type.

    Raises:
        SpecError: the detector cannot be exported.
        OSError: the file cannot be written.
    """
    import onnx_ir

    network = PortableNetwork(detector, rules, select)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            custom_translation_table=_translations(),
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            verbose=False,
        )
        assert program is not None, "the exporter of torch.export returns a program"
        for output in program.model.graph.outputs:
            output.shape = onnx_ir.Shape([DETECTIONS, *(output.shape or ())[1:]])
        program.model.metadata_props.update(entries)
        program.model.doc_string = entries.get("licences")
        program.model.producer_name = "fedbench"
        program.save(path)


def onnx_runner(path: Path) -> Callable[[Tensor], Detections]:
    """Return a function that detects in one image with the file, by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> Detections:
        return Detections(*(torch.from_numpy(part) for part in session.run(list(OUTPUTS), {INPUT: image.numpy()})))

    return run


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the ONNX form of each operator that torch's exporter cannot translate."""
    from onnxscript import opset18

    op: Any = opset18

    def suppression(boxes: Any, scores: Any, iou: float, threshold: float, most: int) -> Any:
        found = op.NonMaxSuppression(  # [K, 3]: group, class, box
            boxes,
            op.Unsqueeze(scores, [1]),
            op.Constant(value_ints=[most]),
            op.Constant(value_floats=[iou]),
            op.Constant(value_floats=[threshold]),
        )
        return op.Gather(found, op.Constant(value_ints=[0, 2]), axis=1)

    def roi_pool(maps: Any, boxes: Any, spatial_scale: float, height: int, width: int) -> Any:
        pooled = op.MaxRoiPool(maps, boxes, pooled_shape=(height, width), spatial_scale=spatial_scale)
        return pooled, op.Constant(value_ints=[0])  # the second output, for gradients, is not used

    return {torch.ops.fedbench.select.default: suppression, torch.ops.torchvision.roi_pool.default: roi_pool}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes for its developers off the terminal."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
