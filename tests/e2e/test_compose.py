"""The compose files: what compose understands of them, and the cluster of three nodes as it runs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio
import yaml

from continuum.client import Client, new_task
from continuum.config import Settings
from tests.conftest import require
from tests.support.compose import BUILD_DEADLINE, NODES, ROOT, compose, compose_nodes, find_compose
from tests.support.docker import require_docker

SLOW = "import time; time.sleep(0.2); print('done')"


OBSERVED = "observability/compose.yml"


def understood(*files: str, **environment: str) -> dict[str, Any]:
    """A file as `docker compose config` gives it back, with others over it."""
    program = find_compose()
    require("compose", program is not None, "no `docker compose`: install the plugin, or Debian's docker-compose")
    assert program is not None
    done = subprocess.run(
        [*program, *(f"--file={ROOT / 'deploy' / file}" for file in files), "config"],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    config: dict[str, Any] = yaml.safe_load(done.stdout)
    return config


@pytest.mark.parametrize("over", [(), (OBSERVED,)])
@pytest.mark.parametrize("file", ["cockroach-compose.yml", "postgres-compose.yml"])
def test_compose_understands_the_file_and_nothing_in_it_is_without_bounds(file: str, over: tuple[str, ...]) -> None:
    services = understood(file, *over, DOCKER_GID="4711")["services"]
    assert ("prometheus" in services) is bool(over)
    assert all(service.get("mem_limit") for service in services.values()), "memory limits"
    for name, service in services.items():
        for port in service.get("ports", []):
            host = port.split(":")[0] if isinstance(port, str) else port.get("host_ip")
            assert host == "127.0.0.1", f"{name} is offered to the whole network: {port}"
    worker = services["worker"]
    assert worker["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    assert worker["restart"] == "unless-stopped"


@pytest.mark.parametrize("file", ["cockroach-compose.yml", "postgres-compose.yml"])
def test_the_docker_socket_is_in_the_hands_of_a_proxy_without_network_and_of_nobody_else(file: str) -> None:
    config = understood(file, DOCKER_GID="4711", CONTAINER_RUNTIME="runsc")
    services = config["services"]
    assert [name for name, service in services.items() if "/var/run/docker.sock" in str(service)] == ["docker-socket"]
    proxy, worker = services["docker-socket"], services["worker"]
    assert proxy["command"] == ["socket-proxy"]
    assert proxy["network_mode"] == "none"
    assert proxy["read_only"]
    assert [str(group) for group in proxy["group_add"]] == ["4711"]
    assert worker["environment"]["DOCKER_HOST"] == "unix:///run/continuum/docker.sock"
    assert worker["depends_on"]["docker-socket"]["condition"] == "service_healthy"
    # What the proxy compares creations with: everything that says what a sandbox is must be the same on both sides.
    shared = {name for name in worker["environment"] if name.startswith(("CONTAINER_", "EGRESS"))}
    assert {name: proxy["environment"][name] for name in shared} == {
        name: worker["environment"][name] for name in shared
    }
    assert {"CONTAINER_RUNTIME", "EGRESS_DNS"} <= shared
    assert not {name for name in proxy["environment"] if name.startswith("DB_")}, "it needs no database"


def test_every_node_has_a_store_and_a_health_check_and_workers_cannot_sign_certificates() -> None:
    config = understood("cockroach-compose.yml")
    services = config["services"]
    for node in NODES:
        assert services[node]["healthcheck"]["test"]
        assert f"--join={','.join(NODES)}" in str(services[node]["command"])
    mounted = {name: str(service.get("volumes")) for name, service in services.items()}
    assert {name for name, volumes in mounted.items() if "authority" in volumes} == {"certificates"}
    assert {name for name, volumes in mounted.items() if "node-certificates" in volumes} == {
        "certificates", "cluster", *NODES,
    }  # fmt: skip
    assert services["worker"]["environment"]["DB_SSLMODE"] == "verify-full"


@asynccontextmanager
async def whole_cluster(workers: int) -> AsyncIterator[httpx.AsyncClient]:
    """The cluster and so many workers, removed with their volumes afterwards; a client for the status of one of them."""
    try:
        await compose("up", "--build", "--detach", "--scale", f"worker={workers}", deadline=BUILD_DEADLINE)
        address = (await compose("port", "worker", "8080")).decode().strip()
        async with httpx.AsyncClient(base_url=f"http://{address}", timeout=10) as http:
            yield http
    finally:
        with trio.CancelScope(shield=True):
            await compose("down", "--volumes", "--timeout", "5")


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> None:
    require_docker()
    config = understood("cockroach-compose.yml")
    image = config["services"]["roach1"]["image"]
    found = subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False, timeout=60)
    require("cockroach-image", found.returncode == 0, f"{image} is not here: docker pull {image}")
    monkeypatch.setenv("DOCKER_GID", str(os.stat("/var/run/docker.sock").st_gid))


@pytest.mark.usefixtures("images")
async def test_a_node_dies_under_load_and_the_status_says_that_every_task_was_done() -> None:
    async with whole_cluster(workers=2) as http:
        await until(http, "/readyz", lambda answer: answer.is_success)
        async with compose_nodes() as nodes:
            settings = Settings.model_validate({"database_url": nodes.url("continuum")})
            async with Client(settings) as client:
                ids = await client.submit_many([new_task(SLOW)] * 200)
                await client.wait(ids[10], 120)
                await nodes.kill("roach2")
                records = await client.wait_many(ids, 120)
                assert {record.status for record in records} == {"completed"}
                assert (await http.get("/readyz")).is_success, "two nodes of three are enough"
                await nodes.start("roach2")
        await until(http, "/global-status", lambda answer: answer.json()["completed_tasks"] == 200)
        status = (await http.get("/global-status")).json()
        assert (status["total_tasks"], status["pending_tasks"], status["failed_tasks"]) == (200, 0, 0)
        assert status["workers"] == 2
        assert (await compose("exec", "-T", "worker", "id", "-un")).strip() == b"continuum"


async def until(http: httpx.AsyncClient, path: str, holds: Any) -> None:
    """Wait until an answer is what it should be; fail with the last one."""
    last = "nothing"
    with trio.move_on_after(120):
        while True:
            try:
                answer = await http.get(path)
                last = answer.text
                if holds(answer):
                    return
            except httpx.TransportError as error:
                last = repr(error)
            await trio.sleep(0.2)
    raise AssertionError(f"{path} last said {last}")
