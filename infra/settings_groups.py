"""Groups of settings: the store, workers, work pools and ports."""

from __future__ import annotations

import json
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, PrivateAttr, SecretStr, model_validator
from pydantic_core import CoreSchema

from infra.environment.proxies import is_direct
from tasks.documents.numbers import without_booleans


class _SettingsGroup(BaseModel):
    """Base of nested settings. Refuses true and false in place of numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema: CoreSchema = without_booleans(handler(source))
        return schema


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
