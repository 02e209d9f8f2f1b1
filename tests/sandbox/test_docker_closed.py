"""Where the network policy cannot be had, sandboxes have no network, or wait where they had it before: on a real daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog
import trio

from continuum.sandbox import docker as docker_backend
from continuum.sandbox import docker_network
from continuum.sandbox.docker import DockerBackend
from continuum.sandbox.docker_engine import Engine
from continuum.sandbox.docker_network import ensure_network
from continuum.sandbox.docker_stream import Endpoint
from continuum.sandbox.network import EgressPolicy, PolicyError
from continuum.sandbox.protocol import BackendUnavailable
from tests.support import docker as lab


@pytest.fixture(autouse=True, scope="module")
def _docker() -> None:
    lab.require_docker()


@pytest.fixture
async def backend() -> AsyncIterator[DockerBackend]:
    async with lab.open_backend(egress="public") as backend:
        assert backend.description.endswith("egress public, rules verified at each start"), backend.description
        yield backend


async def test_where_the_rules_cannot_be_set_sandboxes_get_no_network(
    backend: DockerBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EgressPolicy, "command", lambda self: ["/bin/sh", "-c", "echo 'no such kernel module' >&2"])
    with structlog.testing.capture_logs() as logs:
        sandboxes = [await backend.start() for _ in range(2)]
    try:
        interfaces = "import socket; print([name for _, name in socket.if_nameindex()])"
        for sandbox in sandboxes:
            assert await lab.execute(sandbox.name, interfaces) == "['lo']\n"
        assert "no network: " in backend.description
        assert "no such kernel module" in backend.description
        warnings = [entry for entry in logs if entry["log_level"] == "warning"]
        assert len(warnings) == 1, "it is said once"
        assert "no such kernel module" in warnings[0]["because"]
    finally:
        for sandbox in sandboxes:
            await sandbox.aclose()


async def test_rules_that_were_not_all_set_are_noticed(backend: DockerBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    without_metadata = EgressPolicy.rules

    def forgetful(self: EgressPolicy, version: int) -> str:
        kept = [rule for rule in without_metadata(self, version) if "169.254" not in rule]
        return "\n".join(["*filter", *(f"{rule} [0:0]" if rule[0] == ":" else rule for rule in kept), "COMMIT"])

    monkeypatch.setattr(EgressPolicy, "restore_input", forgetful)
    sandbox = await backend.start()
    try:
        assert "shows other rules than were set" in backend.description
    finally:
        await sandbox.aclose()


async def test_a_helper_that_may_not_run_closes_the_network(
    backend: DockerBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_network, "_HELPER_CAPABILITIES", ["NO_SUCH_CAPABILITY"])
    sandbox = await backend.start()
    try:
        assert "cannot run" in backend.description
    finally:
        await sandbox.aclose()


@pytest.mark.parametrize(
    ("values", "reason"),
    [({"NetworkMode": "no-such-network"}, "cannot run"), ({"NetworkMode": "none"}, "could not be read")],
)
async def test_where_the_hosts_addresses_are_unknown_there_is_no_network(
    values: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = docker_network._helper

    def elsewhere(*arguments: Any, **given: Any) -> dict[str, Any]:
        specification = make(*arguments, **given)
        specification["HostConfig"] |= values
        # What a namespace without an address prints.
        specification["Entrypoint"] = ["/bin/sh", "-c", "echo Local:"]
        return specification

    monkeypatch.setattr(docker_network, "_helper", elsewhere)
    async with lab.open_backend(egress="public") as backend:
        assert "no network: " in backend.description
        assert "the host's addresses" in backend.description
        assert reason in backend.description


async def test_preparing_again_opens_a_network_that_was_closed(
    backend: DockerBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(EgressPolicy, "command", lambda self: ["/bin/false"])
        await (await backend.start()).aclose()
    assert "no network" in backend.description
    await backend.prepare()
    assert backend.description.endswith("egress public, rules verified at each start")


async def test_rules_that_were_set_before_and_cannot_be_now_delay_tasks_instead_of_failing_them(
    backend: DockerBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    await (await backend.start()).aclose()
    with monkeypatch.context() as broken:
        broken.setattr(EgressPolicy, "command", lambda self: ["/bin/sh", "-c", "echo 'killed for want of memory' >&2"])
        with pytest.raises(BackendUnavailable, match="killed for want of memory"):
            await backend.start()
    with monkeypatch.context() as broken:
        broken.setattr(docker_network, "_HELPER_CAPABILITIES", ["NO_SUCH_CAPABILITY"])
        with pytest.raises(BackendUnavailable, match="cannot run"):
            await backend.start()
    with monkeypatch.context() as broken:
        broken.setattr(docker_network, "parse_addresses", lambda text: ())
        with pytest.raises(BackendUnavailable, match="the host's addresses could not be read"):
            await backend.prepare()
    assert backend.description.endswith("egress public, rules verified at each start")
    await backend.prepare()
    sandbox = await backend.start()
    try:
        interfaces = "import socket; print(len(socket.if_nameindex()) > 1)"
        assert await lab.execute(sandbox.name, interfaces) == "True\n"
    finally:
        await sandbox.aclose()


async def test_a_runtime_with_a_network_of_its_own_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_backend, "enforceable", lambda info, runtime: False)
    async with lab.open_backend(egress="public") as backend:
        assert "no network: iptables rules do not bind" in backend.description


async def test_a_foreign_network_of_the_same_name_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"continuum-{lab.new_worker()}"
    monkeypatch.setattr(docker_network, "NETWORK", name)
    with lab.api() as client:
        client.create_network(name, driver="bridge")
        try:
            async with lab.open_backend(egress="public") as backend:
                assert f"docker network rm {name}" in backend.description
        finally:
            client.remove_network(name)


async def test_workers_that_prepare_at_once_use_one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"continuum-{lab.new_worker()}"
    monkeypatch.setattr(docker_network, "NETWORK", name)
    found = set()

    async def prepare() -> None:
        engine = Engine(Endpoint.from_environment({}))
        try:
            found.add((await ensure_network(engine)).id)
            found.add((await ensure_network(engine)).id)
        finally:
            engine.close()

    with lab.api() as client:
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(6):
                    nursery.start_soon(prepare)
            assert len(found) == 1
        finally:
            for network in client.networks(names=[name]):
                client.remove_network(network["Id"])


async def test_a_network_that_cannot_be_made_is_a_reason_to_go_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_network, "NETWORK", f"continuum-{lab.new_worker()}")
    monkeypatch.setattr(docker_network, "NETWORK_OPTIONS", {"com.docker.network.bridge.name": "too-long-for-a-name"})
    engine = Engine(Endpoint.from_environment({}))
    try:
        with pytest.raises(PolicyError, match="cannot be made"):
            await ensure_network(engine)
    finally:
        engine.close()
