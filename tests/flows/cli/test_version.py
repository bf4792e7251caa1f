"""``fedbench version`` and ``fedbench --version``."""

from __future__ import annotations

from importlib import metadata

from tests.flows.command import fedbench


def test_the_option_prints_what_the_command_prints() -> None:
    option, command = fedbench("--version"), fedbench("version")
    assert (option.exit_code, command.exit_code) == (0, 0)
    assert option.output == command.output
    assert option.output.startswith(f"fedbench {metadata.version('fedbench')} · torch ")


def test_the_option_stands_before_a_command_alone() -> None:
    assert fedbench("version", "--version").exit_code == 2
    assert "Start with fedbench run" in fedbench("--help").output
    assert "Federations" in fedbench().output
