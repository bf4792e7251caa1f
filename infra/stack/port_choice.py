"""The ports of a stack's servers: those that the settings ask for, or others while these are taken."""

from __future__ import annotations

from collections.abc import Iterable

from infra.processes.ports import bindable
from infra.settings import Settings
from infra.stack.state import PortChoice, StackState


def with_asked_ports(state: StackState, names: Iterable[str]) -> StackState:
    """Return ``state`` with the ports that were asked for first, of the servers ``names``, if they are free now.

    A server whose port is still taken keeps the one that it got instead, so that its address stays the same.

    Raises:
        ServiceFailed: the stack's host is no address of this machine.
    """
    ports = dict(state.ports)
    for name in names:
        choice = ports.get(name)
        if choice is not None and choice.chosen != choice.asked and bindable(choice.asked, state.host) is not None:
            ports[name] = PortChoice(asked=choice.asked, chosen=choice.asked)
    return state.model_copy(update={"ports": ports})


def moved_ports(settings: Settings, state: StackState) -> list[str]:
    """Return a line for each server that is not at the port that the settings ask for."""
    lines = []
    for name, choice in state.ports.items():
        asked = getattr(settings.ports, name)
        if choice.chosen == asked:
            continue
        if choice.asked != asked:
            why = f"the settings asked for port {choice.asked} when it was started"
        elif bindable(asked, state.host) is None:
            lines.append(f"{name}: port {asked} is taken, {choice.chosen} is used instead")
            continue
        else:
            why = f"port {asked} was taken when it was started, and is free now"
        lines.append(f"{name}: port {choice.chosen} is used: {why}; to change to {asked}: fedbench down, fedbench up")
    return lines
