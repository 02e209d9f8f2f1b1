"""The network policy in force: sandboxes on a real daemon, against listeners on networks that Docker made for them."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import AsyncIterator

import docker.types
import pytest
import trio

from continuum.sandbox import docker_network
from continuum.sandbox.docker import DockerBackend
from continuum.sandbox.docker_engine import Engine
from continuum.sandbox.docker_network import NETWORK, find_host_addresses
from continuum.sandbox.docker_owner import Owner
from continuum.sandbox.docker_stream import Endpoint
from continuum.sandbox.network_host import own_addresses
from tests.support import docker as lab

CONNECT = """
import socket
try:
    socket.create_connection(("{host}", {port}), timeout=2).close()
    print("connected")
except OSError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(autouse=True, scope="module")
def _docker() -> None:
    lab.require_docker()


@pytest.fixture
async def backend() -> AsyncIterator[DockerBackend]:
    async with lab.open_backend(egress="public") as backend:
        assert backend.description.endswith("egress public, rules verified at each start"), backend.description
        yield backend


def addresses(container: str) -> tuple[str, str]:
    """A container's address on the sandboxes' network, and its gateway's."""
    with lab.api() as client:
        network = client.inspect_container(container)["NetworkSettings"]["Networks"][NETWORK]
    return network["IPAddress"], network["Gateway"]


async def test_a_script_cannot_reach_the_host_where_a_container_without_the_policy_can(
    backend: DockerBackend,
) -> None:
    sandbox = await backend.start()
    try:
        _, gateway = addresses(sandbox.name)
        with lab.listener(gateway) as port, lab.bystander(NETWORK) as other:
            for host in (gateway, f"::ffff:{gateway}"):
                connect = CONNECT.format(host=host, port=port)
                assert await lab.execute(other, connect) == "connected\n"
                for user in (lab.SCRIPT_USER, "0:0"):
                    # The rule says no, to the second packet at the latest; a packet lost on the way would have been a timeout.
                    assert "No route to host" in await lab.execute(sandbox.name, connect, user=user)
    finally:
        await sandbox.aclose()


async def test_an_address_of_the_host_is_closed_even_when_it_is_public() -> None:
    pool = docker.types.IPAMConfig(pool_configs=[docker.types.IPAMPool(subnet="198.51.100.128/28")])
    with lab.api() as client:
        # The host's own address on this network is none of a private range.
        made = client.create_network(f"continuum-{lab.new_worker()}", driver="bridge", ipam=pool)["Id"]
        try:
            gateway = client.inspect_network(made)["IPAM"]["Config"][0].get("Gateway", "198.51.100.129")
            async with lab.open_backend(egress="public") as backend:
                sandbox = await backend.start()
                try:
                    with lab.listener(gateway) as port, lab.bystander(NETWORK) as other:
                        connect = CONNECT.format(host=gateway, port=port)
                        assert await lab.execute(other, connect) == "connected\n"
                        assert "No route to host" in await lab.execute(sandbox.name, connect)
                finally:
                    await sandbox.aclose()
        finally:
            client.remove_network(made)


async def test_the_hosts_addresses_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    here = set(own_addresses())
    monkeypatch.setattr(docker_network, "own_addresses", lambda: ())
    worker = lab.new_worker()
    engine = Engine(Endpoint.from_environment({}))
    try:
        found = await find_host_addresses(engine, Owner.current(lab.settings(), worker), lab.IMAGE)
        await lab.none_left(worker)
    finally:
        engine.close()
    with lab.api() as client:
        bridge = client.inspect_network("bridge")["IPAM"]["Config"][0]
    # A daemon that has made this network itself does not tell its gateway before it is started again: it is the first address.
    gateway = bridge.get("Gateway") or str(next(ipaddress.ip_network(bridge["Subnet"]).hosts()))
    assert ipaddress.ip_address(gateway) in found
    # Others come and go with the networks of other tests.
    assert {address for address in here if address.is_loopback} <= set(found)


async def test_a_script_cannot_reach_a_private_network_of_another_bridge(backend: DockerBackend) -> None:
    with lab.api() as client:
        made = client.create_network(f"continuum-{lab.new_worker()}", driver="bridge")["Id"]
        try:
            gateway = client.inspect_network(made)["IPAM"]["Config"][0]["Gateway"]
            sandbox = await backend.start()
            try:
                with lab.listener(gateway) as port:
                    answer = await lab.execute(sandbox.name, CONNECT.format(host=gateway, port=port))
                assert "No route to host" in answer
            finally:
                await sandbox.aclose()
        finally:
            client.remove_network(made)


async def test_sandboxes_cannot_reach_each_other(backend: DockerBackend) -> None:
    first, second = await backend.start(), await backend.start()
    try:
        address, _ = addresses(second.name)
        serve = (
            "import socket, sys\n"
            f"server = socket.create_server(('{address}', 7000))\n"
            "server.settimeout(20)\n"
            "server.accept()\n"
            "print('reached')"
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lab.execute, second.name, serve)
            check = f"import socket; socket.create_connection(('{address}', 7000), timeout=1).close(); print('ok')"
            # Over its own loopback it is reachable: the server is up. It accepts only once, so look, don't knock.
            look = "print(':1B58 ' in open('/proc/net/tcp').read())"
            with trio.fail_after(10):
                while await lab.execute(second.name, look) != "True\n":
                    pass
            answer = await lab.execute(first.name, CONNECT.format(host=address, port=7000))
            assert "No route to host" in answer
            assert await lab.execute(second.name, check) == "ok\n"
    finally:
        await first.aclose()
        await second.aclose()


async def test_the_network_itself_keeps_containers_apart_too(backend: DockerBackend) -> None:
    with lab.bystander(NETWORK) as server, lab.bystander(NETWORK) as client:
        address, _ = addresses(server)
        with lab.api() as api:
            made = api.exec_create(server, ["python3", "-m", "http.server", "7000", "--bind", address])
            api.exec_start(made["Id"], detach=True)

        def reached_from_host() -> bool:
            try:
                socket.create_connection((address, 7000), timeout=1).close()
            except OSError:
                return False
            return True

        await lab.eventually(reached_from_host)
        assert "TimeoutError" in await lab.execute(client, CONNECT.format(host=address, port=7000))


async def test_nobody_can_open_a_connection_to_a_sandbox(backend: DockerBackend) -> None:
    sandbox = await backend.start()
    try:
        address, _ = addresses(sandbox.name)
        with pytest.raises(TimeoutError):
            # A closed port would have refused at once.
            await trio.to_thread.run_sync(lambda: socket.create_connection((address, 7000), timeout=0.5))
    finally:
        await sandbox.aclose()


async def test_names_are_still_resolved_and_loopback_works(backend: DockerBackend) -> None:
    sandbox = await backend.start()
    try:
        address, _ = addresses(sandbox.name)
        # A container's own name: Docker's resolver answers it without asking anybody else.
        resolve = f"import socket; print(socket.gethostbyname('{sandbox.name}'))"
        assert await lab.execute(sandbox.name, resolve) == f"{address}\n"
        talk = (
            "import socket; server = socket.create_server(('127.0.0.1', 0)); "
            "socket.create_connection(server.getsockname(), timeout=2); print('ok')"
        )
        assert await lab.execute(sandbox.name, talk) == "ok\n"
    finally:
        await sandbox.aclose()


async def test_only_dockers_resolver_may_ask_a_private_name_server(backend: DockerBackend) -> None:
    sandbox = await backend.start()
    try:
        _, gateway = addresses(sandbox.name)
        send = (
            "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            f"try: print(s.sendto(b'question', ('{gateway}', PORT)))\n"
            "except OSError as error: print(type(error).__name__)"
        )
        as_resolver = await lab.execute(sandbox.name, send.replace("PORT", "53"), user="0:0")
        as_root_elsewhere = await lab.execute(sandbox.name, send.replace("PORT", "54"), user="0:0")
        as_script = await lab.execute(sandbox.name, send.replace("PORT", "53"))
        assert (as_resolver, as_root_elsewhere, as_script) == ("8\n", "PermissionError\n", "PermissionError\n")
    finally:
        await sandbox.aclose()


async def test_names_of_the_host_lead_back_into_the_sandbox(backend: DockerBackend) -> None:
    sandbox = await backend.start()
    try:
        resolve = "import socket; print(*(socket.gethostbyname(f'{n}.docker.internal') for n in ('host', 'gateway')))"
        assert await lab.execute(sandbox.name, resolve) == "127.0.0.1 127.0.0.1\n"
    finally:
        await sandbox.aclose()


async def test_not_even_root_of_the_sandbox_can_change_the_rules(backend: DockerBackend) -> None:
    sandbox = await backend.start()
    try:
        flush = "import subprocess; print(subprocess.run(['iptables', '-F'], capture_output=True).returncode != 0)"
        assert await lab.execute(sandbox.name, flush, user="0:0") == "True\n"
    finally:
        await sandbox.aclose()


async def test_with_egress_none_there_is_only_loopback() -> None:
    async with lab.open_backend(egress="none") as backend:
        assert backend.description.endswith("no network")
        sandbox = await backend.start()
        try:
            interfaces = "import socket; print([name for _, name in socket.if_nameindex()])"
            assert await lab.execute(sandbox.name, interfaces) == "['lo']\n"
        finally:
            await sandbox.aclose()
