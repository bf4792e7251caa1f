"""The services of a stack, each with the ports, the address and the credentials that the stack has."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from infra.processes.service import Service
from infra.servers.credentials import read_keys
from infra.servers.mlflow_server import MlflowService
from infra.servers.prefect_server import PrefectService
from infra.servers.s3 import S3Service, with_folder
from infra.settings import Settings
from infra.settings_groups import DEFAULT_TURN_POOL, S3Settings
from infra.stack.state import StackState, read_state
from infra.stack.supervisor_service import SupervisorService
from infra.stack.workers import CoordinatorWorker, TurnWorker

# In the order in which they are started. Workers are started once the servers answer and have the work pools.
SERVERS = ("s3", "prefect", "mlflow")
WORKERS = ("worker", "coordinator")
SUPERVISOR = SupervisorService.name
SERVICES = (*SERVERS, *WORKERS, SUPERVISOR)


def running_stack(settings: Settings) -> StackState | None:
    """Return the state of this home's stack, by which crashed services are restarted; None: the stack is not up."""
    state = read_state(settings.home)
    return state if state.up else None


def stack_s3(settings: Settings, state: StackState) -> S3Service:
    return S3Service(settings.home, port=state.port("s3", settings.ports.s3), host=state.host, detached=True)


def local_store(settings: Settings) -> S3Settings:
    """Return ``settings.s3``, with its folder if its endpoint is that of this home's own stack."""
    state = read_state(settings.home)
    own = state.up and settings.s3.endpoint is not None and settings.s3.endpoint == state.addresses.get("s3")
    return with_folder(settings.s3, settings.home) if own else settings.s3


def stack_prefect(settings: Settings, state: StackState) -> PrefectService:
    """Return the stack's Prefect server.

    Raises:
        ServiceFailed: the credentials are missing.
    """
    return PrefectService(
        settings.home,
        auth=read_keys(settings.home.absolute() / "services").prefect_auth,
        database_url=state.prefect_database_url,
        port=state.port("prefect", settings.ports.prefect),
        host=state.host,
        detached=True,
    )


def stack_mlflow(settings: Settings, state: StackState, store: S3Settings) -> MlflowService:
    """Return the stack's MLflow server.

    store: with endpoint and credentials if the server has to be started.

    Raises:
        ServiceFailed: the credentials are missing.
    """
    return MlflowService(
        settings.home,
        store,
        state.mlflow_database_uri,
        keys=read_keys(settings.home.absolute() / "services"),
        port=state.port("mlflow", settings.ports.mlflow),
        host=state.host,
        detached=True,
    )


def stack_worker(name: str, settings: Settings, variables: Mapping[str, str]) -> Service:
    """Return one of ``WORKERS``. variables: by which it finds the stack; not needed to look at or end it."""
    pools = settings.pools
    turns = pools.turns or DEFAULT_TURN_POOL
    if name == TurnWorker.name:
        return TurnWorker(settings.home, turns, variables)
    return CoordinatorWorker(settings.home, pools.coordinators, {"FEDBENCH_POOLS__TURNS": turns, **variables})


def bare_service(name: str, settings: Settings, host: str) -> Service:
    """Return the service to look at or to end, which needs no credentials and no store."""
    home = settings.home
    kinds: dict[str, Callable[[], Service]] = {
        "s3": lambda: S3Service(home, host=host, detached=True),
        "prefect": lambda: PrefectService(home, host=host, detached=True),
        "mlflow": lambda: MlflowService(home, S3Settings(), host=host, detached=True),
        **{worker: lambda worker=worker: stack_worker(worker, settings, {}) for worker in WORKERS},  # type: ignore[misc]
        SUPERVISOR: lambda: SupervisorService(home),
    }
    return kinds[name]()
