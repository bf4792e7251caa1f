"""Fixtures for the tests of data forms."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tasks.data.voc_folder import CHAIR, TABLE, add_image, add_lists


@pytest.fixture
def one_folder(tmp_path: Path) -> Path:
    """Return a PASCAL VOC folder: images c, a and b for training, t for test.

    The element ``camera`` of an annotation names the training image's device.
    """
    for name in ("a", "b", "c"):
        add_image(tmp_path, name, CHAIR, extra=f"<camera> {name.upper()} </camera>", suffix=".png")
    add_image(tmp_path, "t", TABLE | {"name": "chair"})
    add_lists(tmp_path, "c\na\nb\n", "t\n")
    return tmp_path
