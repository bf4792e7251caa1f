"""YOLOv3-tiny with a sixteenth of its channels, 0.14 MB: importing this takes the place of the real one.

python tests/benchmarks/narrow_detector.py run SPEC --name NAME …     # the command fedbench, over this detector
"""

from __future__ import annotations

import dataclasses

from tasks.detectors import yolo_network
from tasks.detectors.yolo_network import YOLOV3_TINY_LAYERS, Conv

if __name__ != "__mp_main__":  # a slot has the fork server's; as its main program it would be narrowed again
    yolo_network.YOLOV3_TINY_LAYERS = tuple(
        dataclasses.replace(layer, filters=max(layer.filters // 16, 4)) if isinstance(layer, Conv) else layer
        for layer in YOLOV3_TINY_LAYERS
    )

if __name__ == "__main__":
    from flows import run
    from flows.cli.app import main

    run.PRELOAD = (*run.PRELOAD, "tests.benchmarks.narrow_detector")  # type: ignore[assignment]
    main()
