"""Open the handles of a federation: its store, the slots where its turns run, its display and its report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from flows.coordinator.preflight import PRELOAD, slot_count
from flows.deployments.names import resident_deployment
from flows.stored.runs import readable_history
from flows.views.header import show_header
from flows.views.progress import SafeReporter
from infra.settings import Settings
from infra.store.layout import FederationLayout
from infra.store.lease import StoreLease
from infra.store.leased import LeasedStore
from infra.store.objects import ObjectStore
from infra.store.weights import WeightStore
from infra.tracking.client import turn_mlflow_to
from infra.turns.local import LocalSlots, TurnRunner
from tasks.code_version import installed_code
from tasks.errors import SpecError
from tasks.handles import Handles, Reporter
from tasks.replies import answer_limit, read_reply
from tasks.spec.federation import FederationSpec
from tasks.spec.records import RoundRecord
from tasks.take_turn import take_turn

if TYPE_CHECKING:
    from collections.abc import Callable

    from flows.views.mlflow_run import RunReport
    from flows.views.progress import Progress

# Between a resident's cancellation and its kill. Nobody waits for its turn any more, so it has nothing to save.
GRACE_SECONDS = 3.0


def open_handles(
    name: str,
    spec: FederationSpec,
    settings: Settings,
    progress: Progress,
    report: RunReport,
    lease: StoreLease,
    page_log: Callable[[], Progress] | None = None,
) -> Handles:
    """Open the handles of one federation, and pass the committed rounds to ``progress`` and ``report``.

    settings: with the store's endpoint filled in; MLflow uses it too. lease: the federation's lease, which is held;
    once it is lost, nothing is written any more. page_log: called in the federation's flow run when it begins; what it
    returns gets the events too. None: ``progress`` logs to the flow run's page itself.

    Raises:
        PoolUnusable, SettingsError, SpecError: the federation's turns cannot run anywhere.
    """
    s3 = settings.s3
    turn_mlflow_to(s3)
    safe = SafeReporter(progress, report.views)
    layout = FederationLayout(s3.prefix, name)
    if lease.objects.settings != s3:
        lease.use(ObjectStore(s3))
    objects = LeasedStore(lease.objects, lease)
    runner: TurnRunner = (
        pool_slots(name, spec, settings, safe.message)
        if settings.pools.used
        else local_slots(settings, slot_count(settings, spec))
    )

    def committed(record: RoundRecord) -> None:
        safe.round_committed(record)
        report.round_committed(record)

    def started(flow_run_id: str) -> None:
        report.flow_started(flow_run_id)
        if page_log is not None:
            what = "the log on Prefect's page"
            with report.views.showing(what):
                log = page_log()
                show_header(log, name, spec)
                if history:
                    log.resumed(history[-1].round, history)
                safe.also_to(what, log)

    history = readable_history(objects, layout).records  # mended_history mends damaged ones when the flow has begun
    if history:
        safe.resumed(history[-1].round, history)
    safe.message("opening the run in MLflow")
    report.open(history)
    return Handles(
        settings=settings,
        objects=objects,
        weights=WeightStore(objects, settings.home / "cache" / "weights", settings.weight_cache_megabytes),
        layout=layout,
        slots=runner,
        take_turn=take_turn,
        reporter=cast("Reporter", safe),
        committed=committed,
        started=started,
        finished=report.finish,
        went_back=report.open,
        views=report.views,
        lease=lease,
    )


def local_slots(settings: Settings, count: int) -> LocalSlots:
    """Return slots of this machine. Their environment has what the settings file may lack: home, store and keys."""
    s3 = settings.s3
    environment = {"FEDBENCH_HOME": str(settings.home), "FEDBENCH_S3__BUCKET": s3.bucket}
    if s3.endpoint is not None:
        environment["FEDBENCH_S3__ENDPOINT"] = s3.endpoint
    if s3.access_key is not None and s3.secret_key is not None:
        environment["FEDBENCH_S3__ACCESS_KEY"] = s3.access_key.get_secret_value()
        environment["FEDBENCH_S3__SECRET_KEY"] = s3.secret_key.get_secret_value()
    return LocalSlots(count, PRELOAD, environment)


def pool_slots(name: str, spec: FederationSpec, settings: Settings, say: Callable[[str], None]) -> TurnRunner:
    """Return slots that are residents on the work pools of ``settings.pools``.

    Raises:
        PoolUnusable: a client has no pool.
        SpecError: ``spec`` does not name its clients.
    """
    from infra.turns.resident_slots import ResidentSlots

    if spec.clients is None:
        raise SpecError(f"{name}: participation.clients: expected the data set's devices, which pin_data fills in")
    return ResidentSlots(
        ObjectStore(settings.s3),
        FederationLayout(settings.s3.prefix, name),
        settings.pools,
        spec.clients,
        job_variables=job_variables(spec),
        read_reply=read_reply,
        answer_limit=answer_limit,
        say=say,
        code=installed_code(),
        deployment=resident_deployment,
    )


def job_variables(spec: FederationSpec) -> dict[str, Any]:
    """Return what a turn of ``spec`` requires of its slot. A worker whose slot has less refuses the run."""
    cuda = spec.training.device == "cuda"
    return {
        "device": "cuda" if cuda else "any",
        "threads": spec.training.threads,
        "grace_seconds": GRACE_SECONDS,
    }
