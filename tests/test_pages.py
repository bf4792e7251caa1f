"""The pages for developers of fedbench name only files and make targets that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("CONTRIBUTING.md", "docs/architecture.md", "docs/words.md", "tests/README.md")
# In code marks, a path is a text that starts with one of these folders, or a file name with one of these endings.
FOLDERS = ("flows/", "infra/", "tasks/", "tests/", "docs/", ".ci/")
FILE = re.compile(r"[\w./-]+\.(py|md|toml|yaml|yml|txt|png|css)")
LINK = re.compile(r"\]\(([^)#:]+)(#[^)]*)?\)")


def paths(page: str) -> Iterator[Path]:
    """Yield every path that ``page`` names. Paths in code marks start at the root, those of links at the page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    plain = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for code in re.findall(r"`([^`\s]+)`", plain):
        if re.search(r"[<>*…{}:=]", code):
            continue  # a pattern, an address or an option
        if code.startswith(FOLDERS) or ("/" not in code and FILE.fullmatch(code) and code[0] != "_"):
            yield ROOT / code
    for link, _ in LINK.findall(plain):
        yield (ROOT / page).parent / link


@pytest.mark.parametrize("page", PAGES)
def test_every_named_path_exists(page: str) -> None:
    found = list(paths(page))
    assert len(found) > 5
    assert not [str(path.relative_to(ROOT)) for path in found if not path.exists()]


@pytest.mark.parametrize("page", PAGES)
def test_every_named_make_target_exists(page: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = set(re.findall(r"`make ([a-z]+)", (ROOT / page).read_text(encoding="utf-8")))
    assert named <= targets
