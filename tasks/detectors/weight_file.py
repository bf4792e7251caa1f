"""A weight file that a specification names: is it there, is it the one? Without torch: asked before a run starts."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tasks.errors import DataError
from tasks.spec.detector import DarknetWeights


def check_weights(weights: DarknetWeights, path: Path) -> str:
    """sha256 (hex) of the weight file at ``path``, held against the specification's when that has one.

    Raises:
        DataError: the file is missing or another one.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
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
