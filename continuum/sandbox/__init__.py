"""Sandboxes: where code that nobody trusts runs. `choose_backend` picks the kind this host can offer."""

from __future__ import annotations

import math

import structlog
import trio

from continuum.config import Settings
from continuum.sandbox.protocol import Backend, BackendUnavailable

log = structlog.get_logger(__name__)

WEAKER = (
    "bubblewrap shares the host's kernel and its interpreter, has no memory or CPU limit for a group of processes, "
    "no limit to the number of files and no network at all; use Docker (SANDBOX=docker) for code that you do not trust"
)


IMAGE_DEADLINE = 60.0
"""Seconds for Docker to have an image for sandboxes, where somebody waits who could do without Docker."""


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


async def prepared_backend(settings: Settings, worker_id: str) -> tuple[Backend, str]:
    """A backend that can start sandboxes now, for those who cannot wait until one can, and why it is not Docker (empty where
    it is, or where SANDBOX says so): with `auto` Docker, where it is ready within `IMAGE_DEADLINE`, else bubblewrap.

    Raises `BackendUnavailable`.
    """
    from continuum.sandbox.bubblewrap import BubblewrapBackend
    from continuum.sandbox.docker import DockerBackend

    no_docker = ""
    if settings.sandbox != "bubblewrap":
        docker = DockerBackend(settings, worker_id)
        no_docker = f"Docker was not ready within {IMAGE_DEADLINE:g} s"
        with trio.move_on_after(IMAGE_DEADLINE if settings.sandbox == "auto" else math.inf):
            try:
                await docker.prepare()
            except BackendUnavailable as error:
                if settings.sandbox == "docker":
                    raise
                no_docker = str(error)
            else:
                return docker, ""
        await docker.aclose()
    bubblewrap = BubblewrapBackend(settings, worker_id)
    try:
        await bubblewrap.prepare()
    except BackendUnavailable as error:
        raise BackendUnavailable(f"{no_docker}; and without Docker: {error}" if no_docker else str(error)) from None
    return bubblewrap, no_docker
