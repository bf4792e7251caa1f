"""A stack's server goes back to the port that the settings ask for when that is free; until then, `up` names both."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.settings import Settings
from infra.settings_groups import PortSettings
from infra.stack.port_choice import moved_ports, with_asked_ports
from infra.stack.state import PortChoice, StackState


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    """Return a socket that listens at a port, until it is closed."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening


def moved(tmp_path: Path, taken: socket.socket) -> tuple[Settings, StackState, int]:
    """Return settings that ask for the taken port, the state of a stack that moved to another, and the port."""
    port = taken.getsockname()[1]
    settings = Settings(home=tmp_path, ports=PortSettings(mlflow=port))
    ports = {"mlflow": PortChoice(asked=port, chosen=45999), "s3": PortChoice(asked=9000, chosen=9000)}
    return settings, StackState(ports=ports), port


def test_a_port_that_is_taken_is_named_each_time(tmp_path: Path, taken: socket.socket) -> None:
    settings, state, port = moved(tmp_path, taken)
    for _ in range(2):
        assert moved_ports(settings, state) == [f"mlflow: port {port} is taken, 45999 is used instead"]
        assert with_asked_ports(state, ("s3", "mlflow")) == state


def test_the_server_goes_back_when_the_port_is_free(tmp_path: Path, taken: socket.socket) -> None:
    settings, state, port = moved(tmp_path, taken)
    taken.close()
    (line,) = moved_ports(settings, state)
    assert line == (
        f"mlflow: port 45999 is used: port {port} was taken when it was started, and is free now; to change to {port}: "
        "fedbench down, fedbench up"
    )
    assert with_asked_ports(state, ("s3",)) == state  # a server that still runs stays where it is
    back = with_asked_ports(state, ("s3", "mlflow"))
    assert back.port("mlflow", port) == port
    assert moved_ports(settings, back) == []


def test_settings_that_ask_for_another_port_now_are_named(tmp_path: Path, taken: socket.socket) -> None:
    _, state, port = moved(tmp_path, taken)
    settings = Settings(home=tmp_path, ports=PortSettings(mlflow=45998))
    assert moved_ports(settings, state) == [
        f"mlflow: port 45999 is used: the settings asked for port {port} when it was started; to change to 45998: "
        "fedbench down, fedbench up"
    ]
