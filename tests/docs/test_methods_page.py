"""docs/methods.md names every method, with the costs that its class has."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

from tasks.documents.by_type import members
from tasks.spec.strategies import AnyStrategy

PAGE = (Path(__file__).resolve().parents[2] / "docs/methods.md").read_text(encoding="utf-8")
ROWS = {
    kind: [int(cell) for cell in cells.split("|")]
    for kind, cells in re.findall(r"^\| `(\w+)` \| ((?:\d+ \| )+\d+) \|$", PAGE, re.MULTILINE)
}


def test_the_table_of_costs_has_the_means_and_states_of_each_additive_method() -> None:
    additive = [spec for spec in members(AnyStrategy) if spec.additive]
    kinds = [spec.model_fields["kind"].default for spec in additive]
    assert sorted(ROWS) == sorted(kinds)
    for kind in kinds:
        method = import_module(f"tasks.strategies.{kind}").METHOD
        means, _, memory, down, up = ROWS[kind]
        assert means == len(method.means), kind
        assert memory >= means
        assert up == 1 + method.client_state, kind
        assert down >= up, kind


def test_each_method_has_a_link_to_its_fields_and_its_paper() -> None:
    for spec in members(AnyStrategy):
        title = spec.model_config["title"]
        assert f"[{title}](specification.md#strategy-{title.lower()})" in PAGE, title
        paper = re.search(r"arXiv (\d{4}\.\d{5})", spec.__doc__ or "")
        assert paper is not None, title
        assert f"https://arxiv.org/abs/{paper[1]}" in PAGE, title
