"""The list of commands in ``--help``: the headings and commands of docs/commands.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from flows.cli.app import COMMANDS, app
from tests.flows.command import fedbench

PAGE = Path(__file__).parents[3] / "docs" / "commands.md"


def documented() -> dict[str, set[str]]:
    """Return the first words of the documented commands, by their heading on the page."""
    found: dict[str, set[str]] = {}
    for section in PAGE.read_text().split("\n## ")[1:]:
        heading, _, text = section.partition("\n")
        cells = re.findall(r"^\| (`.+?`) \|", text, re.MULTILINE)
        words = [name for cell in cells for name in re.findall(r"`(?:fedbench )?([a-z-]+)", cell)]
        found[heading] = {word for word in words if not word.startswith("--")}
    return found


def panels() -> dict[str, set[str]]:
    """Return the names of all commands and groups, by their heading in ``--help``."""
    found: dict[str, set[str]] = {}
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        found.setdefault(command.rich_help_panel, set()).add(name)
    return found


def test_every_command_has_the_heading_of_the_documentation() -> None:
    assert panels().keys() == COMMANDS.keys()
    page = documented()
    for heading, names in panels().items():
        assert names <= page[heading], heading


@pytest.mark.parametrize("heading", COMMANDS)
def test_help_prints_the_headings_in_order(heading: str) -> None:
    text = fedbench("--help").output
    assert f" {heading} " in text
    places = [text.index(f" {one} ") for one in COMMANDS]
    assert places == sorted(places)
