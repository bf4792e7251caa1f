"""The notification about a failed suite, rendered from the run's message by the server's own template engine."""

from __future__ import annotations

from types import SimpleNamespace
from uuid import UUID

import pytest
from prefect.events.actions import SendNotification
from prefect.server.utilities.user_templates import render_user_template_sync

from infra.orchestrator.automations import regression_automation

RUN = UUID(int=7)


def body_of(message: str) -> str:
    (action,) = regression_automation(UUID(int=1), "suite").actions
    assert isinstance(action, SendNotification)
    run = SimpleNamespace(id=RUN, state=SimpleNamespace(message=message))
    text: str = render_user_template_sync(action.body, {"flow_run": run})
    return text


def test_a_message_without_special_characters_arrives_unchanged() -> None:
    message = "five federated: map50_voc10 0.531 → 0.412, limit 0.482 [3 seeds before, 3 now]"
    assert body_of(message) == f"{message}\n\nPrefect flow run {RUN}"


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("{{ 7 * 7 }} {% for x in 'ab' %}x{% endfor %}", "{ { 7 * 7 }} {% for x in 'ab' %}x{% endfor %}"),
        ("<!channel> <https://evil.example|log in>", "‹!channel› ‹https://evil.example|log in›"),
        ("@everyone", "＠everyone"),
        ("[log in](https://evil.example)", "[log in] (https://evil.example)"),
    ],
)  # fmt: skip
def test_a_clients_text_is_never_a_template_a_link_or_a_mention(written: str, sent: str) -> None:
    assert body_of(f"cell a failed: {written}") == f"cell a failed: {sent}\n\nPrefect flow run {RUN}"
