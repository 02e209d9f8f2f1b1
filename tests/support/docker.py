"""What tests on a real Docker daemon share. Everything made is labelled with a worker of the test's own."""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import docker
import docker.errors
import trio

from continuum.config import Settings
from continuum.model import Ending, RunRequest, Stream
from continuum.sandbox.docker import DockerBackend, DockerSandbox
from continuum.sandbox.docker_owner import WORKER_LABEL
from tests.conftest import require

IMAGE = "python:3.9-slim"
SCRIPT_USER = "58000:58000"


def require_docker() -> None:
    """Skip, or fail where Docker is required, unless there is a daemon with the image that tests use."""
    reason = ""
    try:
        with api() as client:
            client.inspect_image(IMAGE)
    except docker.errors.ImageNotFound:
        reason = f"the image {IMAGE} is missing: make sandbox-image"
    except docker.errors.DockerException as error:
        reason = f"no Docker daemon: {error}"
    require("docker", not reason, reason)


def require_gvisor() -> None:
    """Skip, or fail where it is required, unless the daemon knows the runtime runsc."""
    require_docker()
    with api() as client:
        known = "runsc" in client.info()["Runtimes"]
    require("runsc", known, "the Docker daemon does not know the runtime runsc: make services")


@contextmanager
def api() -> Iterator[Any]:
    """docker-py's client, to look at the daemon from beside the code under test."""
    client = docker.APIClient(version="auto", timeout=30)
    try:
        yield client
    finally:
        client.close()


def new_worker() -> str:
    return f"test-{secrets.token_hex(4)}"


def settings(**values: Any) -> Settings:
    """The defaults, whatever the environment says, with some values of the test's own."""
    return Settings(_env_file=None, **{"container_image": IMAGE, "egress": "none", **values})  # type: ignore[call-arg]


def containers(worker: str) -> list[dict[str, Any]]:
    """The containers of a worker, those that do not run included."""
    with api() as client:
        listed: list[dict[str, Any]] = client.containers(all=True, filters={"label": f"{WORKER_LABEL}={worker}"})
    return listed


async def eventually(condition: Callable[[], bool], within: float = 10.0) -> None:
    """Return once a condition, cheap to ask, holds; fail when it does not within so many seconds."""
    with trio.fail_after(within):
        while not await trio.to_thread.run_sync(condition):
            await trio.sleep(0.02)


async def none_left(worker: str, within: float = 10.0) -> None:
    """Return once a worker has no container; fail when it still has some after so many seconds."""
    await eventually(lambda: not containers(worker), within)


@asynccontextmanager
async def open_backend(worker: str | None = None, **values: Any) -> AsyncIterator[DockerBackend]:
    """A prepared backend, whose sandboxes must all be gone soon after the block."""
    worker = worker or new_worker()
    backend = DockerBackend(settings(**values), worker)
    try:
        await backend.prepare()
        yield backend
        await none_left(worker)
    finally:
        for container in containers(worker):
            with api() as client:
                remove(client, container["Id"])
        await backend.aclose()


@contextmanager
def bystander(network: str) -> Iterator[str]:
    """A container without any policy on a network, doing nothing; gives its name."""
    with api() as client:
        specification = {
            "Image": IMAGE, "Cmd": ["sleep", "120"],
            "HostConfig": {"NetworkMode": network, "LogConfig": {"Type": "none"}},
        }  # fmt: skip
        name = f"continuum-{new_worker()}"
        try:
            client.create_container_from_config(specification, name)
            client.start(name)
            yield name
        finally:
            remove(client, name)


def remove(client: Any, name: str) -> None:
    """Remove a container, if it is there."""
    with suppress(docker.errors.APIError):
        client.remove_container(name, force=True, v=True)


@contextmanager
def listener(host: str) -> Iterator[int]:
    """A server on an address of this machine that greets everybody; gives its port."""
    with socket.create_server((host, 0)) as server:

        def greet() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                    with connection:
                        connection.sendall(b"this is the host")
                except OSError:
                    return

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


async def execute(container: str, code: str, *, user: str = SCRIPT_USER) -> str:
    """Run Python code in a container, beside its runner; return all that it printed."""

    def run() -> str:
        with api() as client:
            made = client.exec_create(container, ["python3", "-I", "-c", code], user=user)
            printed: bytes = client.exec_start(made["Id"])
            return printed.decode()

    return await trio.to_thread.run_sync(run)


def request(code: str, **values: Any) -> RunRequest:
    """A script to run, for a short time."""
    given = {"task_id": 1, "attempt": 1, "payload": "null", "timeout": 20.0, "output_limit": 1 << 20, **values}
    return RunRequest(code=code, **given)


async def output_of(sandbox: DockerSandbox, code: str) -> str:
    """What a script prints that must end well."""
    outcome = await sandbox.run(request(code), ignore_output)
    assert outcome.ending is Ending.COMPLETED, outcome
    return outcome.output


def ignore_output(stream: Stream, text: str) -> None:
    """A sink for output that nobody looks at."""
