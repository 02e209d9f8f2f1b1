"""Everything in one process: an embedded PostgreSQL, a worker, and a client. For trying things out, for programs on one machine,
and for tests."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import structlog
import trio

from continuum.client import BlockingClient, Client
from continuum.config import Settings, load_settings
from continuum.db import open_database
from continuum.nursery.signals import Shutdown
from continuum.nursery.state import WorkerState, new_worker_id
from continuum.nursery.supervisor import supervise
from continuum.sandbox import prepared_backend
from continuum.telemetry import Telemetry


def _tell(line: str) -> None:
    sys.stderr.write(f"continuum: {line}\n")
    sys.stderr.flush()


@asynccontextmanager
async def local(**settings: Any) -> AsyncIterator[Client]:
    """A client with a database and a worker of its own, which live as long as the block: `async with continuum.local() as c:`.

    The database is an embedded PostgreSQL in EMBEDDED_DIR (`.continuum/postgres`); what other settings say of databases does not
    count. It keeps its tasks: those that were left are gone on with the next time. `continuum worker` and all other commands
    work on the same ones in the same folder, with DB_DIALECT=embedded. The worker is a thread of this process, without a status
    page; what it still runs at the end of the block goes back to the queue. Sandboxes are Docker's, or bubblewrap's where there
    is no Docker, of which stderr is told, unless SANDBOX says which.

    settings: over the environment's. Raises what they are wrong in (`ConfigurationError`), and what is not there:
    `EmbeddedServerError`, `BackendUnavailable`.
    """
    own = {"db_dialect": "embedded", "database_url": None, "min_priority": 0, "max_priority": 0}
    chosen = load_settings(**own | settings)
    worker = _Worker(chosen)
    failure: BaseException | None = None
    with _quiet_logs():
        async with Client(chosen) as client, trio.open_nursery() as nursery:
            try:
                await nursery.start(worker.run)
                yield client
            except trio.Cancelled:
                raise
            except BaseException as error:  # the block's own, which nobody expects in a group
                failure = error
            finally:
                with trio.CancelScope(shield=True):
                    await client.give_up_all()
                worker.stop()
    if failure is not None:
        raise failure


def local_blocking(**settings: Any) -> BlockingClient:
    """The blocking twin of `local`: `with continuum.local_blocking() as c:`, or `open` and `close` in a notebook."""
    return BlockingClient(opening=lambda: local(**settings))


class _Worker:
    """A worker in a thread of its own, where it keeps its leases however long the program's tasks go on without a pause, and
    where Ctrl-C does not strike."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._shutdown = Shutdown()
        self._preparing = trio.CancelScope()
        self._stopped = False
        self._token: trio.lowlevel.TrioToken | None = None

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Until `stop`, or until it is cancelled. Started once it has a sandbox. Raises `BackendUnavailable` before that."""
        around = trio.lowlevel.current_trio_token()
        failure: Exception | None = None

        def work() -> None:
            trio.run(self._work, lambda: around.run_sync_soon(task_status.started))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stop_when_cancelled)
            try:
                await trio.to_thread.run_sync(work, limiter=trio.CapacityLimiter(1))
            except Exception as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def stop(self) -> None:
        """Have it end at once: what it runs goes back to the queue. Safe to repeat."""
        self._stopped = True
        if self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._end)

    async def _stop_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.stop()

    # -- in its thread -----------------------------------------------------------------------------------------------

    async def _work(self, on_up: Callable[[], None]) -> None:
        self._token = trio.lowlevel.current_trio_token()
        if self._stopped:
            self._end()
        state = WorkerState(id=new_worker_id(), slots=self._settings.slots)
        async with open_database(self._settings) as database:
            with self._preparing:
                backend, no_docker = await prepared_backend(self._settings, state.id)
            if self._preparing.cancelled_caught:
                return
            if no_docker:
                _tell(f"tasks run in bubblewrap, which is weaker than Docker: {no_docker}")
            await supervise(self._settings, state, database, backend, Telemetry(), self._shutdown, on_up)

    def _end(self) -> None:
        self._preparing.cancel()
        self._shutdown.request()
        self._shutdown.request()  # a second time: without grace


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """Warnings go to stderr, and nothing else anywhere, unless the program has said where logs go."""
    if structlog.is_configured():
        yield
        return
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(30),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.reset_defaults()
