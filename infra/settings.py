"""``Settings``: a machine's configuration, which never enters a specification, its digest, MLflow or parameters.

Read from the environment (``FEDBENCH_HOME``, ``FEDBENCH_S3__ENDPOINT``, …) over the YAML file that
``FEDBENCH_SETTINGS`` names (default ``<home>/settings.yaml`` when it exists).
"""

from __future__ import annotations

import difflib
import functools
import logging
import os
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, GetCoreSchemaHandler, SecretStr, ValidationError
from pydantic_core import CoreSchema
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from infra.errors import SettingsError
from infra.settings_groups import PoolSettings, PortSettings, S3Settings, WorkerSettings
from tasks.documents.by_type import settle
from tasks.documents.errors import DocumentError, DuplicateKey
from tasks.documents.json_text import read_json
from tasks.documents.numbers import without_booleans
from tasks.documents.regular_file import read_regular_text
from tasks.documents.yaml_text import read_document

log = logging.getLogger(__name__)

PREFIX = "FEDBENCH_"
# Variables that have the prefix and are no settings: the settings file, a run's slot, an image's version, variables of
# tests and benchmarks, and those that a suite sets for its cells.
_OTHER_VARIABLES = {"SETTINGS", "SLOT", "VERSION", "SCREENSHOTS", "FLOWER_VENV", "MLFLOW_CELL", "PARENT_TASK_RUN"}

_FROM_FILE: ContextVar[dict[str, Any]] = ContextVar("fedbench_settings_file", default={})  # noqa: B039 (never changed)


class _Environment(EnvSettingsSource):
    """Settings source for the environment. Refuses a repeated key in the JSON of a variable."""

    def decode_complex_value(self, field_name: str, field: Any, value: Any) -> Any:
        try:
            return read_json(value)
        except DuplicateKey as error:
            name = f"{PREFIX}{field_name.upper()}" if field_name in Settings.model_fields else field_name
            raise SettingsError(f"{name}: {error} of its JSON") from None


class Settings(BaseSettings):
    """Configuration of this machine: services, credentials, slots, data folders, caches."""

    model_config = SettingsConfigDict(
        env_prefix="FEDBENCH_", env_nested_delimiter="__", extra="ignore", frozen=True, env_ignore_empty=True
    )

    home: Path = Field(Path.home() / ".fedbench", description="Folder of everything that the embedded services keep.")
    s3: S3Settings = Field(S3Settings(), description="Store of weights and records.")
    prefect_api_url: str | None = Field(None, description="API of a Prefect server; none: an embedded one.")
    mlflow_tracking_uri: str | None = Field(None, description="Tracking URI; none: SQLite under home.")
    mlflow_experiment: str = Field("fedbench", description="MLflow experiment that runs are tracked in.")
    mlflow_system_metrics: bool = Field(
        True, description="Log CPU, memory, disk, network and GPU of the coordinating machine to a run in MLflow."
    )
    plots: bool = Field(
        True, description="Draw plots and a sheet of detections at a run's end. fedbench report draws them in any case."
    )
    prefect_database_url: SecretStr | None = Field(
        None, description="postgresql+asyncpg://… of our own Prefect server; none: SQLite under home."
    )
    mlflow_database_url: SecretStr | None = Field(
        None, description="postgresql://… where MLflow keeps runs; none: SQLite under home."
    )
    ports: PortSettings = Field(PortSettings(), description="Where the servers of fedbench up listen.")
    ca_file: Path | None = Field(
        None,
        description="Certificates (PEM) of the authorities that Prefect's, MLflow's and the store's clients trust for "
        "servers over TLS (https); none: the public ones.",
    )
    slots: int | None = Field(None, ge=1, le=1024, description="Turns at a time; none: cores // threads of a turn.")
    worker: WorkerSettings = Field(WorkerSettings(), description="The Prefect worker of this machine.")
    pools: PoolSettings = Field(PoolSettings(), description="Work pools that turns and coordinating runs go to.")
    data_roots: dict[str, Path] = Field(default_factory=dict, description="Folder of each data set, by its name.")
    street_dir: Path | None = Field(None, description="Folder of the data set named street.")
    weights_dir: Path | None = Field(None, description="Folder of initial weight files; none: weights under home.")
    image_cache_megabytes: int = Field(4096, ge=0, description="Decoded images that a slot keeps in memory.")
    weight_cache_megabytes: int = Field(8192, ge=1, description="Weights kept on this machine's disk.")
    keep_updates: bool = Field(False, description="Keep the clients' updates after a round's commit.")
    keep_globals: int = Field(2, ge=2, description="Last global models kept; the best is always kept.")
    min_free_megabytes: int = Field(2048, ge=0, description="Free disk space under home that a run needs to start.")
    log_level: str = Field(
        "INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Least severity that the logs contain."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources in order: arguments, then the environment, then the file of :func:`load_settings`."""
        file_settings = InitSettingsSource(settings_cls, init_kwargs=_FROM_FILE.get())
        return init_settings, _Environment(settings_cls), file_settings

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema: CoreSchema = without_booleans(handler(source))
        return schema

    def data_root(self, name: str) -> Path | None:
        """Return the folder of the data set ``name`` on this machine; None: no setting maps it."""
        if name in self.data_roots:
            return self.data_roots[name]
        return self.street_dir if name == "street" else None

    def weight_file(self, name: str) -> Path:
        """Return the path of the initial weights ``name`` on this machine. Only the coordinator reads them."""
        return (self.weights_dir or self.home / "weights") / name


_GROUPS: dict[str, type[BaseModel]] = {
    "s3": S3Settings,
    "worker": WorkerSettings,
    "ports": PortSettings,
    "pools": PoolSettings,
}


def load_settings() -> Settings:
    """Read the settings from the file and the environment.

    Raises:
        SettingsError: the message names the setting, where it came from and what was expected.
    """
    # YamlConfigSettingsSource of pydantic-settings 2.16.3 was tried. It reads by yaml.safe_load: of two equal keys the
    # last one counts, 010 is 8, and ``no`` is False. Here all three are errors that name file, line and setting.
    for name in unknown_variables():
        _warn_of(name)
    home = Path(os.environ.get("FEDBENCH_HOME") or Path.home() / ".fedbench")
    named = os.environ.get("FEDBENCH_SETTINGS")
    path = Path(named) if named else home / "settings.yaml"
    document: Any = {}
    if named or path.exists():
        try:
            document = read_document(read_regular_text(path), str(path)) or {}
        except OSError as error:
            raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise SettingsError(f"{path}: expected YAML: {error}") from None
        except DocumentError as error:
            raise SettingsError(error.of(path)) from None
        if not isinstance(document, dict):
            raise SettingsError(f"{path}: expected a mapping of settings, found {type(document).__name__}")
        unknown = sorted(str(name) for name in document.keys() - Settings.model_fields.keys())
        if unknown:
            raise SettingsError(
                f"{path}: {', '.join(unknown)}: no such setting; expected: {', '.join(sorted(Settings.model_fields))}"
            )
        document, faults = settle(document, Settings)
        if faults:
            raise SettingsError("; ".join(faults))
    try:
        token = _FROM_FILE.set({"home": home, **document})
        try:
            settings = Settings()
            return settings.model_copy(update={"s3": settings.s3.of_home(settings.home)})
        finally:
            _FROM_FILE.reset(token)
    except ValidationError as error:
        raise SettingsError("settings: " + "; ".join(map(_explained, error.errors(include_url=False)))) from None
    except SettingsError:
        raise
    except Exception as error:  # pydantic-settings has its own error for JSON that does not parse
        raise SettingsError(f"settings: {error}; expected JSON in its variable") from None


def unknown_variables() -> list[str]:
    """Return the variables that have the prefix and name no setting. Reading refuses those below a group."""
    names = sorted(name for name in os.environ if name.upper().startswith(PREFIX))
    known = {field.upper() for field in Settings.model_fields} | _OTHER_VARIABLES
    return [
        name
        for name in names
        if (rest := name.upper().removeprefix(PREFIX)).partition("__")[0] not in known and not rest.startswith("TEST_")
    ]


@functools.cache  # once a process
def _warn_of(name: str) -> None:
    """Warn of a variable. It is not refused: runs inherit their machine's variables, also for other versions."""
    known = ["SETTINGS", *(field.upper() for field in Settings.model_fields if field not in _GROUPS)]
    known += [f"{group}__{field}".upper() for group, model in _GROUPS.items() for field in model.model_fields]
    near = difflib.get_close_matches(name.upper().removeprefix(PREFIX), known, n=1)  # all names share the prefix
    log.warning("%s: no such setting, it is ignored%s", name, f"; did you mean {PREFIX}{near[0]}?" if near else "")


def _explained(item: Any) -> str:
    """Return the dotted setting and what was expected. Add the value found unless it may hold a credential."""
    setting, message = ".".join(str(part) for part in item["loc"]), item["msg"]
    if item["type"] == "value_error":
        return f"{setting}.{message.removeprefix('Value error, ')}"
    if item["type"] == "extra_forbidden":
        group = _GROUPS.get(setting.partition(".")[0], Settings)
        return f"{setting}: no such setting; expected one of: {', '.join(group.model_fields)}"
    found = item["input"]
    secret = setting.endswith(("_key", "_database_url")) or not isinstance(found, str | int | float)
    return f"{setting}: {message}" + ("" if secret else f" (found {found!r})")


def run_folder(settings: Settings, name: str) -> Path:
    """Return the folder of a run's plots, sheet, log and specification on this machine."""
    return settings.home / "runs" / name
