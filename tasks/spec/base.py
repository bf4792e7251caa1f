"""The base of all specifications and records: frozen, without unknown fields, and versioned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from tasks.documents.by_type import settle
from tasks.documents.errors import DocumentError
from tasks.documents.numbers import without_booleans
from tasks.documents.plain import Plain
from tasks.errors import SpecError
from tasks.spec.form import arrange, title_of
from tasks.spec.messages import explain

SPEC_VERSION: Literal[1] = 1
RECORD_VERSION: Literal[1] = 1
STORE_VERSION: Literal[1] = 1

# Client ids and federation names are parts of object keys, so only characters that every store and shell takes.
ClientId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
FederationName = Annotated[str, StringConstraints(pattern=_NAME)]
# A flow's parameter. The titles name it, and its two choices, in a form.
ScheduledName = Annotated[
    FederationName | None,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": _NAME, "title": "A name"},
                {"type": "null", "title": "From the scheduled time"},
            ]
        }
    ),
    Field(json_schema_extra={"title": "Name"}),
]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

# Bounds of the values in records: far above real values, and far below the limits of JSON, SQLite, MLflow and float64.
# A record that one of its readers cannot read would stop its federation for ever.
MOST = 10**9
MOST_CLIENTS = 100_000
MOST_CLASSES = 10_000
LONGEST_CLASS = 500  # characters of a class's name
LONGEST_TEXT = 2000
MOST_SECONDS = 1e10
LARGEST_LOSS = 1e40  # a mean of sums of float32 numbers
Count = Annotated[int, Field(ge=0, le=MOST)]
Bytes = Annotated[int, Field(ge=0, le=10**18)]
Seconds = Annotated[float, Field(ge=0, le=MOST_SECONDS)]
Loss = Annotated[float, Field(ge=-LARGEST_LOSS, le=LARGEST_LOSS)]
# Slightly over 1, because scores are of rounded parts. COCO's tools write -1 for a figure that does not exist.
Score = Annotated[float, Field(ge=-1, le=1.001)]
DerivedSeed = Annotated[int, Field(ge=0, lt=2**63)]


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


# Text for people to read: longer text is cut, not refused.
ReadText = Annotated[str, AfterValidator(_shortened), Field(json_schema_extra={"maxLength": LONGEST_TEXT})]
ClassName = Annotated[str, StringConstraints(max_length=LONGEST_CLASS)]

# The description of every field ``kind``.
CHOSEN = "Which of the choices above this is."

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class AddedLater:
    """Marks a field that was added after digests of its model had been stored: ``Annotated[bool, AddedLater()]``.

    If such a field has its default, :func:`digest_fields` leaves it out, so that older digests still identify their
    experiments.

    along_with: another field of the model. This field is left out exactly when that one is, whatever its own value.
    """

    along_with: str | None = None


class Frozen(BaseModel):
    """An immutable model that refuses unknown fields, non-finite numbers, and true and false as numbers."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
        validate_default=True,
        field_title_generator=title_of,
    )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema: CoreSchema = without_booleans(handler(source))
        return schema

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        arrange(handler.resolve_ref_schema(schema))
        return schema


def digest_fields(model: BaseModel) -> dict[str, Any]:
    """Return ``model`` as a JSON document, without fields marked :class:`AddedLater` that have their defaults."""
    document: dict[str, Any] = model.model_dump(mode="json")
    _leave_out_later(model, document)
    return document


def _leave_out_later(value: Any, document: Any) -> None:
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            if _left_out(value, name):
                del document[name]
            else:
                _leave_out_later(getattr(value, name), document[name])
    elif isinstance(value, tuple | list):
        for item, its_document in zip(value, document, strict=True):
            _leave_out_later(item, its_document)
    elif isinstance(value, dict):
        for name, item in value.items():
            _leave_out_later(item, document[str(name)])


def _left_out(model: BaseModel, name: str) -> bool:
    field = type(model).model_fields[name]
    marker = next((item for item in field.metadata if isinstance(item, AddedLater)), None)
    if marker is None:
        return False
    if marker.along_with is not None:
        return _left_out(model, marker.along_with)
    return bool(getattr(model, name) == field.get_default(call_default_factory=True))


def check_name(name: str, *, source: str) -> None:
    """
    Raises:
        SpecError: ``name`` cannot be a federation's name; the message names ``source``.
    """
    try:
        TypeAdapter(FederationName).validate_python(name)
    except ValidationError:
        raise SpecError(f"{source}: expected letters, digits, '.', '_' and '-', at most 100, found {name!r}") from None


def parse(
    model: type[Model], document: Any, *, source: str, newest: int, context: Mapping[str, object] | None = None
) -> Model:
    """Return ``document`` as a ``model``. A ``version`` above ``newest`` is refused before other fields are read.

    ``source`` is the file or object that messages name. ``context`` is passed to the model's validators.

    Raises:
        SpecError: the document is not valid; the message names ``source``, each wrong field and what was expected.
    """
    if not isinstance(document, dict):
        raise SpecError(f"{source}: expected a mapping of fields, found {type(document).__name__}")
    version = document.get("version", newest)
    if isinstance(version, Plain):
        version = _read(version, source)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise SpecError(f"{source}: version: expected a whole number from 1 to {newest}, found {version!r}")
    if version > newest:
        raise SpecError(
            f"{source}: version: {version} is newer than this fedbench understands (up to {newest}); "
            "use the fedbench that wrote it"
        )
    document, faults = settle(document, model)
    if faults:
        raise SpecError("\n".join(faults))
    try:
        return model.model_validate(document, context=context)
    except ValidationError as error:
        raise SpecError(explain(error, model, source)) from None


def _read(version: Plain, source: str) -> Any:
    try:
        return version.value("version")
    except DocumentError as error:
        raise SpecError(str(error) if version.where else f"{source}: {error}") from None
