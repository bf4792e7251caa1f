"""Fixtures for the tests of data sets' forms."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tasks.data.voc_folder import CHAIR, TABLE, add_image, add_lists


@pytest.fixture
def one_folder(tmp_path: Path) -> Path:
    """A PASCAL VOC folder: images c, a and b train, t tests. The element ``camera`` names a device for each."""
    for name in ("a", "b", "c"):
        add_image(tmp_path, name, CHAIR, extra=f"<camera> {name.upper()} </camera>", suffix=".png")
    add_image(tmp_path, "t", TABLE | {"name": "chair"})
    add_lists(tmp_path, "c\na\nb\n", "t\n")
    return tmp_path
