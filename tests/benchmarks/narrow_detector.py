"""YOLOv3-tiny with a sixteenth of its channels, 0.14 MB. It replaces the real one when this module is imported.

python tests/benchmarks/narrow_detector.py run SPEC --name NAME …     # the command fedbench with this detector
"""

from __future__ import annotations

import dataclasses

from tasks.detectors import yolo_network
from tasks.detectors.yolo_network import YOLOV3_TINY_LAYERS, Conv

if __name__ != "__mp_main__":  # a slot inherits the narrow one from the fork server, and must not narrow it again
    yolo_network.YOLOV3_TINY_LAYERS = tuple(
        dataclasses.replace(layer, filters=max(layer.filters // 16, 4)) if isinstance(layer, Conv) else layer
        for layer in YOLOV3_TINY_LAYERS
    )

if __name__ == "__main__":
    from flows import run
    from flows.cli.app import main

    run.PRELOAD = (*run.PRELOAD, "tests.benchmarks.narrow_detector")  # type: ignore[assignment]
    main()
