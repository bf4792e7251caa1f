"""``Settings``: a machine's configuration, which never enters a specification, its digest, MLflow or parameters.

Read from the environment (``FEDBENCH_HOME``, ``FEDBENCH_S3__ENDPOINT``, …) over the YAML file that
``FEDBENCH_SETTINGS`` names (default ``<home>/settings.yaml`` when it exists).
"""

from __future__ import annotations

import difflib
import functools
import json
import logging
import os
from contextvars import ContextVar
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    PrivateAttr,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from infra.environment.proxies import is_direct
from infra.errors import SettingsError
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


class _SettingsGroup(BaseModel):
    """Base of nested settings. Refuses true and false in place of numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema: CoreSchema = without_booleans(handler(source))
        return schema


class _Environment(EnvSettingsSource):
    """Settings source for the environment. Refuses a repeated key in the JSON of a variable."""

    def decode_complex_value(self, field_name: str, field: Any, value: Any) -> Any:
        try:
            return read_json(value)
        except DuplicateKey as error:
            name = f"{PREFIX}{field_name.upper()}" if field_name in Settings.model_fields else field_name
            raise SettingsError(f"{name}: {error} of its JSON") from None


class S3Settings(_SettingsGroup):
    """Any S3-compatible store. Without an endpoint or keys, the embedded server on loopback is used."""

    endpoint: str | None = Field(None, description="URL of the S3 API; none: the embedded server.")
    bucket: str = Field("fedbench", pattern=r"^[a-z0-9][a-z0-9.-]{2,62}$", description="Bucket that holds all objects.")
    prefix: str = Field("federations", description="Prefix of all keys.")
    region: str = Field("us-east-1", description="Region that requests are signed for.")
    access_key: SecretStr | None = Field(
        None,
        description="Access key, set together with secret_key; none: the embedded server's own, or for a store at "
        "endpoint the key that AWS's default credential chain finds.",
    )
    secret_key: SecretStr | None = Field(None, description="Secret key of access_key.")

    _home: Path | None = PrivateAttr(None)

    def __eq__(self, other: object) -> bool:
        """Compare the settings alone, not the home that uses them."""
        return isinstance(other, S3Settings) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))

    def of_home(self, home: Path) -> S3Settings:
        """Return a copy for a machine with this home, whose own server may be the one at the endpoint."""
        copy = self.model_copy()
        copy._home = home.absolute()
        return copy

    def own_folder(self) -> Path | None:
        """Return the folder of the home's own server if that server is at the endpoint; None: another one is."""
        if self._home is None:
            return None
        try:
            found = json.loads((self._home / "services" / "s3.json").read_bytes())
        except (OSError, ValueError):
            return None
        port = found.get("port") if isinstance(found, dict) else None
        parts = urlsplit(self.endpoint or "")
        return self._home / "s3" if port == parts.port and is_direct(self.endpoint or "") else None

    @model_validator(mode="after")
    def _check(self) -> S3Settings:
        if self.endpoint is not None and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(f"endpoint: expected a URL that starts with http:// or https://, found {self.endpoint!r}")
        if (self.access_key is None) != (self.secret_key is None):
            raise ValueError("access_key and secret_key: expected both or neither")
        return self


class LocalS3Settings(S3Settings):
    """The store of this machine's own server, with endpoint and credentials. Users cannot set it."""

    folder: Path = Field(description="Where the server keeps its buckets, each a folder.")

    def own_folder(self) -> Path:
        return self.folder


class WorkerSettings(_SettingsGroup):
    """The Prefect worker of this machine: its slots, and the warm process that its runs are forked from."""

    slots: Literal["auto", "gpu", "cpu"] = Field("auto", description="GPUs, CPU threads, or GPUs if there are any.")
    slots_per_gpu: int = Field(1, ge=1, le=64, description="Runs that share a GPU, each with its fraction.")
    threads: int | None = Field(None, ge=1, description="CPU threads of a slot; none: cores // slots.")
    drain_seconds: float = Field(60.0, ge=0, description="How long a stopping worker waits for its runs to finish.")
    runs_per_server: int = Field(200, ge=1, description="Runs forked from one warm process before it is replaced.")
    server_growth_megabytes: int = Field(512, ge=1, description="Growth after which the warm process is replaced.")
    stored_results: bool = Field(
        False,
        description="Let runs of this worker, fedbench's own too, load results that Prefect stored (persist_result, "
        "caches). Only for flows of your own that need it: a stored result can run any code when it is loaded.",
    )


DEFAULT_TURN_POOL = "gpu"


class PoolSettings(_SettingsGroup):
    """Prefect work pools that turns go to; without any, turns run in slots of the coordinator's own machine."""

    turns: str | None = Field(None, description="Work pool of the turns; none: this machine's own slots.")
    silos: dict[str, str] = Field(
        default_factory=dict, description="Work pool of each client that has its own, beside its data."
    )
    coordinators: str = Field("fedbench", description="Work pool of the coordinating runs, which need no slot.")
    coordinator_runs: int | None = Field(
        None,
        ge=1,
        description="Runs at a time in the pool coordinators, set by fedbench deploy; none: the pool's own limit.",
    )
    residents: int = Field(2, ge=1, le=1024, description="Most slots that a federation holds in a pool.")
    idle_seconds: float = Field(
        60.0, gt=0, description="Time without a turn after which a resident gives its slot back."
    )
    lost_seconds: float = Field(
        60.0, ge=15, description="Silence after which a working resident counts as lost with its machine."
    )

    @property
    def used(self) -> bool:
        """Whether turns go to work pools."""
        return self.turns is not None or bool(self.silos)


class PortSettings(_SettingsGroup):
    """Where the servers of ``fedbench up`` listen. If a port is taken, another one is chosen."""

    prefect: int = Field(4200, ge=1, le=65535, description="Port of the Prefect server.")
    mlflow: int = Field(5000, ge=1, le=65535, description="Port of the MLflow server.")
    s3: int = Field(9000, ge=1, le=65535, description="Port of the S3 server.")
    host: IPv4Address | None = Field(
        None,
        description="Address of this machine that workers of other machines reach; none: loopback. It opens the "
        "servers to that network: then their credentials are all that protects them, and nothing is encrypted.",
    )

    @model_validator(mode="after")
    def _check(self) -> PortSettings:
        if self.host is not None and (self.host.is_unspecified or self.host.is_multicast):
            raise ValueError(f"host: expected one address of this machine that clients can use, found {self.host}")
        return self


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
