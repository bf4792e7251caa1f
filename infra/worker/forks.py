"""Keep a warm process for the worker: start it, start it again when it dies, and replace it before it grows.

Every run is a fresh fork, so its leaks end with it. Only the warm process itself can grow. It is replaced after a
number of runs, or when it has grown by a number of megabytes, as soon as the next one is ready. The old one ends after
its last run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from infra.errors import ForkServerLost
from infra.worker.warm_process import Child, ForkRequest, WarmProcess

log = logging.getLogger(__name__)


class Forks:
    """The worker's warm process: started again when it dies, replaced when it is worn."""

    def __init__(
        self, preload: Sequence[str], *, runs: int, megabytes: int, environment: Mapping[str, str] | None = None
    ) -> None:
        """
        Args:
            preload: Modules that the warm process imports.
            runs: It is replaced after so many runs.
            megabytes: It is replaced when it has grown by so many megabytes.
            environment: Its variables; None: those of this process. A run whose variables have the same settings of
                Prefect need not read them again.
        """
        self.preload = tuple(preload)
        self.environment = environment
        self.runs = runs
        self.megabytes = megabytes
        self._server: WarmProcess | None = None
        self._changing = asyncio.Lock()
        self._replacing: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def server(self) -> WarmProcess | None:
        return self._server

    async def start(self) -> WarmProcess:
        """Return the warm process; start it if there is none.

        Raises:
            ForkServerLost: it does not start.
        """
        async with self._changing:
            if self._server is None or self._server.is_lost:
                self._server = await self._started()
            return self._server

    async def fork(self, request: ForkRequest, descriptor: int | None = None) -> Child:
        """Fork a child for ``request`` from the warm process; start that first if there is none.

        Raises:
            ForkServerLost: the warm process cannot fork, or it ended and so did a second one.
        """
        server = await self.start()
        try:
            child = await server.fork(request, descriptor)
        except ForkServerLost:
            if not server.is_lost:
                raise
            server = await self.start()
            child = await server.fork(request, descriptor)
        if self._replacing is None and server.is_worn(self.runs, self.megabytes):
            self._replacing = asyncio.create_task(self._replace(server))
        return child

    async def stop(self) -> None:
        """End all warm processes and all their children, now."""
        tasks = [*self._retiring, *([self._replacing] if self._replacing is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.stop()

    async def _started(self) -> WarmProcess:
        server = WarmProcess()
        try:
            await server.start(self.preload, self.environment)
        except BaseException:
            await server.stop()
            raise
        return server

    async def _replace(self, worn: WarmProcess) -> None:
        try:
            server = await self._started()
        except ForkServerLost as error:
            log.warning("%s; the old one is kept", error)
        else:
            self._server = server
            task = asyncio.create_task(self._retire(worn))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
        finally:
            self._replacing = None

    async def _retire(self, worn: WarmProcess) -> None:
        try:
            await worn.retire()
        except asyncio.CancelledError:
            await worn.stop()
            raise
