"""The worker's image: what is in it, and how process 1 takes signals, with the rights that Kubernetes would give it."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata

import trio

from continuum.model import NewTask, Status
from tests.support.image import build_image
from tests.support.installation import Installation
from tests.support.postgres import free_port

AS_IN_KUBERNETES = (
    "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges",
    # What deploy/kubernetes/bubblewrap allows, beside a user namespace, which this daemon may not have.
    "--security-opt=seccomp=unconfined", "--security-opt=systempaths=unconfined",
)  # fmt: skip


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@asynccontextmanager
async def container(image: str, *options: str, **environment: str) -> AsyncIterator[str]:
    name = f"continuum-test-{secrets.token_hex(4)}"
    variables = [f"--env={key}={value}" for key, value in environment.items()]
    docker("run", "--detach", "--name", name, *options, *variables, image)
    try:
        yield name
    finally:
        docker("rm", "--force", name)


async def until(holds: object, name: str, seconds: float = 60) -> None:
    assert callable(holds)
    with trio.move_on_after(seconds):
        while not await trio.to_thread.run_sync(holds):
            await trio.sleep(0.1)
        return
    raise AssertionError(docker("logs", name))


def test_the_image_is_what_it_says() -> None:
    image = build_image()
    (found,) = json.loads(docker("image", "inspect", image))
    config = found["Config"]
    assert config["User"] == "continuum"
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert config["Labels"]["org.opencontainers.image.version"] == metadata.version("continuum-worker")
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    look = "command -v gcc cc make; [ -w / ] || [ -w /opt/continuum ] || echo nothing to write; id -u"
    assert docker("run", "--rm", "--network=none", "--entrypoint=sh", image, "-c", look).split("\n") == [
        "nothing to write", "10001", "",
    ]  # fmt: skip
    assert "socket-proxy" in docker("run", "--rm", "--network=none", image, "--help")


async def test_a_worker_in_it_runs_tasks_is_healthy_and_ends_in_order(light: Installation) -> None:
    environment = {**light.environment, "SANDBOX": "bubblewrap", "API_PORT": str(free_port()), "SLOTS": "2"}
    options = (*AS_IN_KUBERNETES, "--network=host", "--health-interval=1s")
    async with container(build_image(), *options, **environment) as name:
        ids = await light.database.submit([NewTask(code="import os; print(os.getppid())")] * 20)
        with trio.fail_after(90):
            while not all(one.finished_for_good for one in await light.database.fetch(ids)):
                await trio.sleep(0.1)
        assert {one.status for one in await light.database.fetch(ids)} == {Status.COMPLETED}, docker("logs", name)
        await until(lambda: docker("inspect", "-f", "{{.State.Health.Status}}", name) == "healthy\n", name)
        docker("kill", "--signal=HUP", name)
        await until(lambda: "settings reloaded" in docker("logs", name), name)
        assert "<defunct>" not in docker("top", name)

        (slow,) = await light.database.submit([NewTask(code="import time; time.sleep(2); print('done')")])
        await until(lambda: trio.from_thread.run(light.database.fetch, [slow])[0].status == "processing", name)
        await trio.to_thread.run_sync(docker, "stop", "--time=40", name)
        assert docker("inspect", "-f", "{{.State.ExitCode}}", name) == "0\n"
        (record,) = await light.database.fetch([slow])
        assert (record.status, record.output) == ("completed", "done\n")
