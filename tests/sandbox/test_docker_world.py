"""The network policy against a world that answers for every address: what is closed is closed by the rules alone."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import pytest

from continuum.egress import Address
from continuum.sandbox import docker_network
from tests.conftest import require
from tests.support import docker as lab
from tests.support import world as roles
from tests.support.world import World, answered, open_sandbox, reach, targets

OPEN = [*targets(*roles.PUBLIC), *targets(*(f"::ffff:{address}" for address in roles.PUBLIC), kinds=("tcp", "udp"))]
CLOSED = [
    *targets(*roles.CLOSED),
    *targets(*(f"::ffff:{address}" for address in roles.CLOSED), kinds=("tcp", "udp")),
    *targets(*roles.MULTICAST, kinds=("udp",)),
]
OPEN_IPV6 = targets(*roles.PUBLIC_IPV6)
CLOSED_IPV6 = [*targets(*roles.CLOSED_IPV6, *roles.LINK_IPV6), *targets(*roles.MULTICAST_IPV6, kinds=("udp",))]
SEND_RAW = """
import socket, sys
for protocol in (47, 132, 253):
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol) as raw:
        try:
            print(protocol, raw.sendto(b"hello", (sys.argv[1], 0)))
        except PermissionError:
            print(protocol, "refused")
"""
RESOLVE = "import socket; print(socket.gethostbyname('{name}'))"


pytestmark = pytest.mark.usefixtures("network_of_the_world")


@pytest.fixture
def control(world: World) -> Iterator[str]:
    """A container without any policy, from which every route leads into the world, too."""
    with lab.bystander(world.network) as name:
        world.lead(name)
        yield name


def test_the_daemon_gives_the_world_ipv6(world: World) -> None:
    require("docker-ipv6", bool(world.ipv6), "the daemon makes no network with IPv6: what is closed there is not shown")


async def test_without_a_policy_every_address_answers(world: World, control: str) -> None:
    everything = world.targets([*OPEN, *CLOSED], [*OPEN_IPV6, *CLOSED_IPV6])
    assert answered(everything, await lab.execute(control, reach(everything))) == set(everything)


async def test_only_public_addresses_answer_a_script(world: World) -> None:
    everything = world.targets([*OPEN, *CLOSED], [*OPEN_IPV6, *CLOSED_IPV6])
    async with open_sandbox(world) as sandbox:
        printed = await lab.output_of(sandbox, reach(everything))
    assert answered(everything, printed) == set(world.targets(OPEN, OPEN_IPV6))


async def test_root_of_the_sandbox_reaches_no_more(world: World) -> None:
    everything = world.targets([*OPEN, *CLOSED], [*OPEN_IPV6, *CLOSED_IPV6])
    async with open_sandbox(world) as sandbox:
        printed = await lab.execute(sandbox.name, reach(everything), user="0:0")
    assert answered(everything, printed) == set(world.targets(OPEN, OPEN_IPV6))


async def test_the_hosts_own_addresses_are_closed_even_when_they_are_public(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def addresses(*_: object) -> tuple[Address, ...]:
        return ipaddress.ip_address(roles.INTERNET), ipaddress.ip_address(roles.INTERNET_IPV6)

    monkeypatch.setattr(docker_network, "find_host_addresses", addresses)
    wanted = world.targets(targets(roles.INTERNET, roles.ELSEWHERE), targets(*roles.PUBLIC_IPV6))
    async with open_sandbox(world) as sandbox:
        open_ones = answered(wanted, await lab.output_of(sandbox, reach(wanted)))
    assert {address for _, address, _ in open_ones} == {
        roles.ELSEWHERE,
        *((roles.PUBLIC_IPV6[1],) if world.ipv6 else ()),
    }


async def test_other_protocols_than_tcp_udp_and_ping_are_refused_even_to_who_may_send_them(
    world: World, control: str
) -> None:
    send = ["python3", "-I", "-c", SEND_RAW, roles.INTERNET]
    assert roles.beside(control, send, "NET_RAW").split() == ["47", "5", "132", "5", "253", "5"]
    async with open_sandbox(world) as sandbox:
        assert roles.beside(sandbox.name, send, "NET_RAW").count("refused") == 3
        raw = "import socket\ntry: socket.socket(socket.AF_INET, socket.SOCK_RAW, 47)\nexcept OSError as e: print(e)"
        assert "Operation not permitted" in await lab.output_of(sandbox, raw)


@pytest.mark.parametrize("server", [roles.NAME_SERVER, roles.PRIVATE_NAME_SERVER])
async def test_names_are_resolved_by_the_servers_of_egress_dns(world: World, server: str) -> None:
    async with open_sandbox(world, egress_dns=[server]) as sandbox:
        assert await lab.output_of(sandbox, RESOLVE.format(name=roles.NAME)) == f"{roles.INTERNET}\n"


async def test_a_script_cannot_ask_a_private_name_server_itself(world: World) -> None:
    direct = targets(roles.PRIVATE_NAME_SERVER, f"::ffff:{roles.PRIVATE_NAME_SERVER}", kinds=("tcp", "udp"), port=53)
    become_root = (
        "import ctypes, os\n"
        "for attempt in (lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0)):\n"
        "    try: attempt(); print('root')\n"
        "    except PermissionError: pass\n"
        "ctypes.CDLL(None).unshare(0x10000000)\n"  # a user namespace, in which it would be root of nothing
    )
    async with open_sandbox(world, egress_dns=[roles.PRIVATE_NAME_SERVER]) as sandbox:
        assert answered(direct, await lab.output_of(sandbox, become_root + reach(direct))) == set()
        # The rule for Docker's resolver is there: it lets root of the sandbox pass, whom scripts cannot become.
        assert answered(direct, await lab.execute(sandbox.name, reach(direct), user="0:0")) == set(direct)


async def test_dockers_resolver_may_ask_only_the_servers_of_egress_dns(world: World) -> None:
    others = targets(roles.PRIVATE_NAME_SERVER, roles.METADATA, kinds=("tcp", "udp"), port=53)
    async with open_sandbox(world, egress_dns=[roles.NAME_SERVER]) as sandbox:
        assert answered(others, await lab.execute(sandbox.name, reach(others), user="0:0")) == set()
