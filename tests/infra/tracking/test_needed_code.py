"""A registered model carries the modules that it imports, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.tracking.needed_code import needed_files

FILES = {
    "pack/__init__.py": "",
    "pack/first.py": "import os\nfrom pack.deep import inner\nfrom pack.second import NAME\n",
    "pack/second.py": "NAME = 1\n\ndef late():\n    import pack.late\n",
    "pack/late.py": "from pack.first import late  # a circle, and a name that is no module\n",
    "pack/deep/__init__.py": "",
    "pack/deep/inner.py": "try:\n    import pack.tried\nexcept ImportError:\n    pass\n",
    "pack/tried.py": "",
    "pack/typed.py": "",
    "pack/named.py": "import pack.of_named\n",
    "pack/of_named.py": "",
    "pack/unused.py": "from pack.first import NAME\n",
    "other/__init__.py": "from pack import unused\n",
}
CODE = """
import json
from typing import TYPE_CHECKING

import pack.first

if TYPE_CHECKING:
    from pack.typed import Type
"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def names(found: list[Path], root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in found}


def test_imports_are_followed_also_inside_functions(packages: Path) -> None:
    code = packages / "code.py"
    code.write_text(CODE)
    expected = {"__init__", "first", "second", "late", "deep/__init__", "deep/inner", "tried"}
    found = needed_files(code, [packages / "pack"])
    assert names(found, packages) == {f"pack/{name}.py" for name in expected}
    assert found == sorted(found)
    more = needed_files(code, [packages / "pack"], ["pack.named"])
    assert names(more, packages) == {f"pack/{name}.py" for name in expected | {"named", "of_named"}}


def test_imports_of_one_package_from_another_are_followed(packages: Path) -> None:
    code = packages / "code.py"
    code.write_text("import other\n")
    assert names(needed_files(code, [packages / "other"]), packages) == {"other/__init__.py"}
    found = names(needed_files(code, [packages / "other", packages / "pack"]), packages)
    assert {"other/__init__.py", "pack/unused.py", "pack/first.py"} <= found


def test_a_relative_import_is_an_error_and_not_left_out(packages: Path) -> None:
    (packages / "pack" / "first.py").write_text("\nfrom . import second\n")
    code = packages / "code.py"
    code.write_text(CODE)
    with pytest.raises(SyntaxError, match=r"first\.py, line 2: expected an import by the full name"):
        needed_files(code, [packages / "pack"])
