"""docs/specification.md describes the current models."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from infra.settings import Settings
from tasks.spec.federation import FederationSpec
from tasks.spec.suite import SuiteSpec

DOCS = Path(__file__).parents[2] / "docs"
MODELS: tuple[type[BaseModel], ...] = (FederationSpec, SuiteSpec, Settings)


def described(model: type[BaseModel]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and JSON schema of ``model``, of the models below it, and of each of their fields."""
    schema = model.model_json_schema()
    for name, part in {model.__name__: schema, **schema["$defs"]}.items():
        yield name, part
        yield from ((f"{name}.{field}", its_schema) for field, its_schema in part["properties"].items())


@pytest.mark.parametrize("model", MODELS)
def test_each_model_and_each_field_has_a_description(model: type[BaseModel]) -> None:
    parts = dict(described(model))
    assert len(parts) > 20
    assert not [name for name, part in parts.items() if not part.get("description")]


def test_the_page_is_up_to_date() -> None:
    page = runpy.run_path(str(DOCS / "specification.py"))["page"]()
    kept = (DOCS / "specification.md").read_text(encoding="utf-8")
    assert page == kept, "docs/specification.md differs from the models: run make docs, which writes it again"


def test_the_page_names_every_field() -> None:
    page = (DOCS / "specification.md").read_text(encoding="utf-8")
    for model in MODELS:
        for name, part in described(model):
            for field in part.get("properties", ()):
                assert f"`{field}`" in page or f".{field}`" in page, f"{name}.{field}"
