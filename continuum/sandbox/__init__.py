"""Sandboxes: where code that nobody trusts runs. `choose_backend` picks the kind this host can offer."""

from __future__ import annotations

import structlog

from continuum.config import Settings
from continuum.sandbox.protocol import Backend, BackendUnavailable

log = structlog.get_logger(__name__)

WEAKER = (
    "bubblewrap shares the host's kernel and its interpreter, has no memory or CPU limit for a group of processes, "
    "no limit to the number of files and no network at all; use Docker (SANDBOX=docker) for code that you do not trust"
)


async def choose_backend(settings: Settings, worker_id: str) -> Backend:
    """The backend that SANDBOX names; for `auto` docker when its daemon answers, otherwise bubblewrap.

    Raises `BackendUnavailable` for `auto` when neither can be used.
    """
    from continuum.sandbox.bubblewrap import BubblewrapBackend

    bubblewrap = BubblewrapBackend(settings, worker_id)
    if settings.sandbox == "bubblewrap":
        log.warning("tasks run in bubblewrap", weaker=WEAKER)
        return bubblewrap
    from continuum.sandbox.docker import DockerBackend  # with Docker's client, which takes a while

    docker = DockerBackend(settings, worker_id)
    if settings.sandbox == "docker":
        return docker
    try:
        await docker.check()
    except BackendUnavailable as no_docker:
        try:
            await bubblewrap.check()
        except BackendUnavailable as no_bubblewrap:
            raise BackendUnavailable(f"{no_docker}; and without Docker: {no_bubblewrap}") from None
        log.warning("tasks run in bubblewrap", because=str(no_docker), weaker=WEAKER)
        return bubblewrap
    return docker
