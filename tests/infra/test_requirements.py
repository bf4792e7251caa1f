"""The pinned requirements have versions and hashes and name no host. Every installation checks the hashes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
FILES = ("requirements.txt", "requirements-setup.txt")


def pinned(file: str) -> dict[str, list[str]]:
    """Return the hashes of each package in ``file``. Check that each package has exactly one version."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / file).read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        text, *hashes = line.split("--hash=")
        requirement = Requirement(text.strip())
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), line
        assert requirement.url is None, line
        found[f"{requirement.name} {requirement.specifier} {requirement.marker or ''}"] = [
            item.strip() for item in hashes
        ]
    return found


@pytest.mark.parametrize("file", FILES)
def test_every_requirement_has_one_version_and_the_hashes_of_its_files(file: str) -> None:
    found = pinned(file)
    assert len(found) > 5
    for package, hashes in found.items():
        assert hashes, package
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", text) for text in hashes), package
    text = (ROOT / file).read_text(encoding="utf-8")
    assert "://" not in text
    assert not [line for line in text.splitlines() if line.startswith("-")]


def test_requirements_for_the_setup_agree_with_the_others() -> None:
    everything, tools = (pinned(file) for file in FILES)
    versions = {package.split()[0]: package.split()[1] for package in everything}
    for package, hashes in tools.items():
        name, version = package.split()[:2]
        assert versions.get(name, version) == version
        assert everything.get(package, hashes) == hashes
    assert {"uv", "hatchling"} <= {package.split()[0] for package in tools}


@pytest.mark.parametrize("file", ["Makefile", "infra/compose/Dockerfile"])
def test_every_installation_checks_hashes_or_adds_no_package(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8").replace("\\\n", " ")
    calls = re.findall(r"pip install\b(?! python)[^&\n]*", text)
    assert len(calls) >= 3
    for call in calls:
        assert "--require-hashes" in call or {"--no-deps", "--no-build-isolation"} <= set(call.split()), call
