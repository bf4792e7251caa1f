"""A worker of warm GPU slots.

    prefect worker start --pool gpu --type fedbench-gpu

It runs flow runs of the pool in slots of this machine (a GPU, a fraction of one, or CPU threads: settings ``worker``
of ``infra/settings.py``), each in a fresh child of a process that has torch, torchvision, Prefect and fedbench imported
already. It supports what Prefect's process worker supports: logs, cancellation, crash detection, hooks, health check
(``--with-healthcheck``) and a limit (``--limit``; never more than there are slots).

Prefect's events make it look for new runs, so ``PREFECT_WORKER_QUERY_SECONDS`` matters only when those fail.
On SIGTERM it takes no new run, asks residents to take no new turn, gives its runs
``FEDBENCH_WORKER__DRAIN_SECONDS`` to finish, then ends them; residents then give their turns back. A second SIGTERM
kills all runs at once. They also end if the worker is killed; then the next worker of the same home reports
them.

The code that finds and leases GPUs is the same that the tests run on CPU slots. It was not run on a GPU.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import anyio
import anyio.abc
import httpx
from prefect.context import refresh_global_settings_context
from prefect.exceptions import InfrastructureNotAvailable, InfrastructureNotFound, ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Crashed
from prefect.workers.base import BaseWorker, BaseWorkerResult

from infra.environment.certificates import PREFECT, STORE, require_trusted, trust
from infra.files.private import private_home
from infra.orchestrator.prefect_private import Supervision
from infra.orchestrator.stored_results import refuse_stored_results
from infra.settings import load_settings
from infra.worker.configuration import GpuJobConfiguration, GpuVariables
from infra.worker.engine_child import PRELOAD
from infra.worker.forks import Forks
from infra.worker.gpus import find_gpus
from infra.worker.leases import SlotLeases, machine_cores, plan_slots, slots_folder
from infra.worker.wake import Waker
from infra.worker.warm_process import Child, ForkRequest

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

HOOK_SECONDS = 120.0  # the most that the hooks of one run may take
REMEMBERED = 256  # runs whose environment is kept for their hooks
WORKER_KILLED = "The worker of this run was killed, and the run with it."


class GpuWorkerResult(BaseWorkerResult):
    """Host, process and exit code of a run that has ended."""


class GpuWorker(BaseWorker[GpuJobConfiguration, GpuVariables, GpuWorkerResult]):
    """A worker that runs flow runs in the slots of this machine. A run's job variables say which slots it can use."""

    type = "fedbench-gpu"
    job_configuration = GpuJobConfiguration
    job_configuration_variables = GpuVariables
    _display_name = "fedbench GPU slots"
    _description = (
        "Run flows in slots of a machine: a GPU, a fraction of one, or CPU threads. Runs are forked from a warm "
        "process that has PyTorch and Prefect imported."
    )

    def __init__(self, work_pool_name: str, *, limit: int | None = None, **options: Any) -> None:
        """
        Raises:
            SettingsError: a setting is wrong, requires what this machine does not have, or names a server whose
                certificate is refused.
        """
        refuse_stored_results()  # parsing a run's state in this process would import what the state names
        self._settings = load_settings()
        self._check_certificates()
        private_home(self._settings.home)
        slots = plan_slots(self._settings, find_gpus(), machine_cores())
        super().__init__(work_pool_name, limit=min(limit or len(slots), len(slots)), **options)
        self._leases = SlotLeases(slots, slots_folder(self._settings.home))
        self._forks: Forks | None = None
        self._supervision = Supervision(self._run_hooks)
        self._children: dict[int, tuple[Child, float]] = {}
        self._environments: dict[UUID, dict[str, str]] = {}
        self._resources = contextlib.AsyncExitStack()
        self._waker = Waker(self._look_for_runs, lambda: self._work_pool.id if self._work_pool is not None else None)

    def _check_certificates(self) -> None:
        """Trust the authorities of ``ca_file``. Check the certificates of Prefect and the store.

        Prefect's command has read its settings by now, and has sent requests. Those that failed did not end it.

        Raises:
            SettingsError: a certificate is refused.
        """
        trust(os.environ, self._settings.ca_file)
        if self._settings.ca_file is not None:
            refresh_global_settings_context()
        api = get_current_settings().api
        if not api.tls_insecure_skip_verify:
            require_trusted(api.url, PREFECT, {**os.environ, PREFECT: api.ssl_cert_file or ""})
        require_trusted(self._settings.s3.endpoint, STORE, os.environ)

    async def setup(self) -> None:
        """Start the warm process, while the worker registers itself with Prefect.

        Raises:
            ForkServerLost: the warm process does not start.
        """
        settings = self._settings.worker
        self._forks = Forks(
            PRELOAD,
            runs=settings.runs_per_server,
            megabytes=settings.server_growth_megabytes,
            environment={**os.environ, **get_current_settings().to_environment_variables(exclude_unset=True)},
        )
        warming = asyncio.create_task(self._forks.start())
        try:
            await super().setup()
            self._resources.push_async_callback(self._forks.stop)
            await self._resources.enter_async_context(self._supervision)
            await warming
            await self._close_left_behind()
            self._waker.start()
        except BaseException:
            warming.cancel()
            await asyncio.gather(warming, return_exceptions=True)
            await self._forks.stop()
            await self._resources.aclose()
            raise
        for kind, count in _counted([str(slot) for slot in self._leases.slots]).items():
            self._logger.info("%d slot(s), each with %s", count, kind)

    async def teardown(self, *exc_info: Any) -> None:
        """Take no more runs, wait for those that are running, then end them."""
        self.is_setup = False
        await self._waker.stop()
        self._leases.ask_to_leave()
        await self._drained(self._settings.worker.drain_seconds)
        grace = 0.0
        for child, seconds in list(self._children.values()):
            child.terminate(seconds)
            grace = max(grace, seconds)
        await self._drained(grace + 30.0 if self.limiter.borrowed_tokens else 0.0)  # for their end to be reported
        await self._resources.aclose()
        await super().teardown(*exc_info)

    async def _drained(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            while self.limiter.borrowed_tokens:
                await anyio.sleep(0.1)

    async def run(
        self,
        flow_run: FlowRun,
        configuration: GpuJobConfiguration,
        task_status: anyio.abc.TaskStatus[Any] | None = None,
    ) -> GpuWorkerResult:
        """Run ``flow_run`` in a slot, to its end.

        Raises:
            SlotRefused: it requires more than any slot has.
        """
        status = task_status or anyio.TASK_STATUS_IGNORED
        host = socket.gethostname()
        environment = {name: value for name, value in configuration.env.items() if value is not None}
        self._remember(flow_run.id, environment)
        lease = await self._leases.acquire(configuration.need())
        identifier = ""

        def started(pid: int) -> None:
            nonlocal identifier
            identifier = f"{host}:{pid}"
            status.started(identifier)

        with contextlib.ExitStack() as stack:
            stack.callback(self._waker.wake)
            stack.callback(lease.release)
            lease.note(str(flow_run.id))
            folder = configuration.working_dir or stack.enter_context(
                tempfile.TemporaryDirectory(prefix="fedbench-run-", ignore_cleanup_errors=True)
            )

            async def start(variables: dict[str, str]) -> Child:
                assert self._forks is not None
                request = ForkRequest(
                    environment={**environment, **lease.slot.environment(), **variables},
                    folder=str(Path(folder).resolve()),
                    threads=lease.slot.threads,
                    quiet=not configuration.stream_output,
                    stored_results=self._settings.worker.stored_results,
                )
                child = await self._forks.fork(request, lease.descriptor)
                self._children[child.pid] = (child, configuration.grace_seconds)
                stack.callback(self._children.pop, child.pid, None)
                return child

            code = await self._supervision.execute(flow_run, start, started, configuration.grace_seconds)
        if not identifier:  # it was cancelled before it started, or could not start, which was reported
            status.started(None)
            return GpuWorkerResult(status_code=0, identifier="")
        await self._close_cancelled(flow_run.id)
        if code == 0:
            await self._close_if_open(flow_run.id, "Its process ended with status code 0 and reported no final state.")
        return GpuWorkerResult(status_code=code or 0, identifier=identifier)

    async def _look_for_runs(self) -> None:
        if self.is_setup and self.limiter.available_tokens:
            await self.get_and_submit_flow_runs()

    async def kill_infrastructure(
        self, infrastructure_pid: str, configuration: GpuJobConfiguration, grace_seconds: int = 30
    ) -> None:
        """End a run that was cancelled before its flow began.

        Raises:
            InfrastructureNotAvailable: it runs on another machine.
            InfrastructureNotFound: this worker has no such process.
        """
        host, _, pid = infrastructure_pid.rpartition(":")
        if host != socket.gethostname():
            raise InfrastructureNotAvailable(f"process {pid} runs on {host}, this worker on {socket.gethostname()}")
        if int(pid) not in self._children:
            raise InfrastructureNotFound(f"process {pid} is not one of this worker's runs")
        child, grace = self._children[int(pid)]
        child.terminate(min(grace, grace_seconds))
        await child.wait()

    async def _close_if_open(self, flow_run_id: UUID, message: str) -> None:
        """Set a run to Crashed if its process ended without a final state. Prefect would always show it as running."""
        current = (await self.client.read_flow_run(flow_run_id)).state
        if current is not None and (current.is_running() or current.is_pending()):
            await self.client.set_flow_run_state(flow_run_id, Crashed(message=message))

    async def _close_cancelled(self, flow_run_id: UUID) -> None:
        """Set a run to Cancelled that was cancelled before it began: its process has ended and did not report that."""
        current = (await self.client.read_flow_run(flow_run_id)).state
        if current is not None and current.is_cancelling():
            message = "It was cancelled before it began, and its process has ended."
            await self.client.set_flow_run_state(flow_run_id, Cancelled(message=message), force=True)

    async def _close_left_behind(self) -> None:
        """Report as ended the runs of a worker of this home that was killed: they ended with it."""
        for left in await asyncio.to_thread(self._leases.left_behind):
            try:
                run = await self.client.read_flow_run(UUID(left))
                if run.state is not None and run.state.is_cancelling():
                    await self.client.set_flow_run_state(run.id, Cancelled(message=WORKER_KILLED), force=True)
                else:
                    await self._close_if_open(run.id, WORKER_KILLED)
            except (httpx.HTTPError, ObjectNotFound, ValueError) as error:
                self._logger.warning("run %s, which ended with its worker, could not be closed: %s", left, error)

    async def _run_hooks(self, flow_run: FlowRun, kind: str, message: str) -> None:
        """Run a flow's hooks in a child that has no slot, and so no GPU."""
        environment = self._environments.get(flow_run.id)
        if environment is None or self._forks is None:
            return
        with tempfile.TemporaryDirectory(prefix="fedbench-hooks-", ignore_cleanup_errors=True) as folder:
            request = ForkRequest(
                environment={**environment, "CUDA_VISIBLE_DEVICES": ""},
                folder=folder,
                task="crashed" if kind == "crashed" else "cancellation",
                message=message,
                stored_results=self._settings.worker.stored_results,
            )
            child = await self._forks.fork(request)
            with anyio.move_on_after(HOOK_SECONDS) as scope:
                await child.wait()
            if scope.cancelled_caught:
                child.kill()

    def _remember(self, flow_run_id: UUID, environment: dict[str, str]) -> None:
        self._environments[flow_run_id] = environment
        while len(self._environments) > REMEMBERED:
            del self._environments[next(iter(self._environments))]


def _counted(names: list[str]) -> dict[str, int]:
    return {name: names.count(name) for name in dict.fromkeys(names)}
