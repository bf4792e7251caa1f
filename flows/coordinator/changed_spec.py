"""Change single fields of a deployment's specification for one run, as ``prefect deployment run -p`` does."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from tasks.errors import SpecError
from tasks.spec.dotted_fields import overrides_schema
from tasks.spec.federation import FederationSpec, with_fields

_MOST_ROUNDS = 100_000
# Parameters of the flow. Prefect checks a run's parameters against the schemas before it makes the run. The
# restrictions stand beside the choices: in a choice, Prefect's message would not say what is wrong. The titles name the
# parameters and their choices in a form, which has the fields of the specification too.
Spec = Annotated[FederationSpec, Field(json_schema_extra={"title": "Specification"})]
MaxRounds = Annotated[
    Annotated[int, Field(ge=1, le=_MOST_ROUNDS)] | None,
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer", "title": "Another"}, {"type": "null", "title": "As in the specification"}],
            "minimum": 1,
            "maximum": _MOST_ROUNDS,
        }
    ),
    Field(json_schema_extra={"title": "Max rounds, from a shell"}),
]
Overrides = Annotated[
    dict[str, Any] | None,
    WithJsonSchema(
        {
            "anyOf": [{"type": "object", "title": "By dotted names"}, {"type": "null", "title": "None"}],
            **overrides_schema(FederationSpec),
        }
    ),
    Field(json_schema_extra={"title": "Other fields, from a shell"}),
]


def changed_spec(spec: FederationSpec, max_rounds: int | None, overrides: dict[str, Any] | None) -> FederationSpec:
    """Return ``spec`` with ``max_rounds`` and the dotted fields of ``overrides`` set.

    Raises:
        SpecError: a field is unknown, a value does not fit, or ``max_rounds`` is given twice.
    """
    fields = dict(overrides or {})
    if max_rounds is not None:
        if fields.get("max_rounds", max_rounds) != max_rounds:
            raise SpecError(
                f"overrides: max_rounds: expected none beside the parameter max_rounds ({max_rounds}), found "
                f"{fields['max_rounds']}"
            )
        fields["max_rounds"] = max_rounds
    return with_fields(spec, fields, source="overrides" if overrides else "parameters") if fields else spec
