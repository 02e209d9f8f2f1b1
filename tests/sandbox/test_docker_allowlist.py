"""EGRESS=allowlist against a world that answers for every address."""

from __future__ import annotations

import json
from typing import Any

import pytest

from continuum.sandbox import network
from continuum.sandbox.protocol import BackendUnavailable
from tests.support import docker as lab
from tests.support import world as roles
from tests.support.names import names
from tests.support.world import Target, World, answered, open_sandbox, reach, targets

pytestmark = pytest.mark.usefixtures("network_of_the_world")

EVERYTHING = targets(*roles.PUBLIC, *roles.CLOSED)
EVERYTHING_IPV6 = targets(*roles.PUBLIC_IPV6, *roles.CLOSED_IPV6)
TUNNEL = "c2VjcmV0.tunnel.example"
LOOK_UP = """
import json, socket, time
found = []
for name in NAMES:
    began = time.monotonic()
    try:
        found.append(sorted({entry[4][0] for entry in socket.getaddrinfo(name, None)}))
    except OSError as error:
        found.append([type(error).__name__, time.monotonic() - began < 2])
print(json.dumps(found))
"""


async def opened(world: World, *allow: str, wanted: list[Target] | None = None, **values: Any) -> set[Target]:
    """What answers a script in a sandbox with a list of what is allowed."""
    wanted = wanted or world.targets(EVERYTHING, EVERYTHING_IPV6)
    async with open_sandbox(world, egress="allowlist", egress_allow=list(allow), **values) as sandbox:
        return answered(wanted, await lab.output_of(sandbox, reach(wanted)))


def spoken(*addresses: str) -> set[Target]:
    """TCP and UDP, which is all that a list opens."""
    return set(targets(*addresses, kinds=("tcp", "udp")))


async def test_only_listed_networks_answer_and_a_private_one_is_opened_by_name(world: World) -> None:
    allow = [roles.INTERNET, "10.11.12.0/28", roles.INTERNET_IPV6, "fd12:3456::/64"]
    expected = spoken(roles.INTERNET, roles.INTERNAL)
    if world.ipv6:
        expected |= spoken(roles.INTERNET_IPV6, roles.INTERNAL_IPV6)
    assert await opened(world, *allow) == expected


async def test_a_port_opens_that_port_alone(world: World) -> None:
    allow = [f"{roles.INTERNET}:443", "10.11.12.0/28:443", f"[{roles.INTERNET_IPV6}]:443"]
    wanted = world.targets(
        [(kind, address, port) for kind, address, _ in targets(roles.INTERNET, roles.INTERNAL) for port in (80, 443)],
        [(kind, address, port) for kind, address, _ in targets(roles.INTERNET_IPV6) for port in (80, 443)],
    )
    answers = await opened(world, *allow, wanted=wanted)
    assert answers == {target for target in wanted if target[0] != "ping" and target[2] == 443}


async def test_a_network_wider_than_a_private_one_means_its_public_addresses(world: World) -> None:
    expected = spoken(*roles.PUBLIC)
    if world.ipv6:
        expected |= spoken(*roles.PUBLIC_IPV6)
    assert await opened(world, "0.0.0.0/0", "::/0") == expected


async def test_an_opened_private_range_keeps_metadata_the_own_network_and_the_host_closed(world: World) -> None:
    private = ["10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15", "fc00::/7"]
    inside = [roles.INTERNAL, roles.PRIVATE_NAME_SERVER, "172.16.9.9", "192.168.77.7", "100.64.1.1", "198.18.0.7"]
    own = targets(world.ipv4, world.gateway, kinds=("tcp", "udp"))
    wanted = world.targets([*EVERYTHING, *own], [*EVERYTHING_IPV6, *targets(world.ipv6, kinds=("tcp", "udp"))])
    expected = spoken(*inside) | (spoken(roles.INTERNAL_IPV6) if world.ipv6 else set())
    assert await opened(world, *private, wanted=wanted) == expected


async def test_listed_names_are_known_and_reached_and_no_other_name_is_asked_for(world: World) -> None:
    known = {
        "api.example": [roles.INTERNET, roles.INTERNET_IPV6],
        "two.example": [roles.ELSEWHERE, roles.NAME_SERVER],
    }
    with names(known) as resolver:
        async with open_sandbox(
            world, egress="allowlist", egress_allow=["api.example:443", "two.example"], egress_dns=[roles.NAME_SERVER]
        ) as sandbox:
            look_up = LOOK_UP.replace("NAMES", repr([*known, TUNNEL, roles.NAME]))
            api, two, *others = json.loads(await lab.output_of(sandbox, look_up))
            wanted = [
                ("tcp", "api.example", 443),
                ("tcp", "api.example", 80),
                ("udp", "two.example", 80),
                *targets(*roles.PUBLIC),
            ]
            answers = answered(wanted, await lab.output_of(sandbox, reach(wanted)))
    assert api == sorted(known["api.example"] if world.ipv6 else [roles.INTERNET])
    assert two == sorted(known["two.example"])
    # Not only no answer: no question left the sandbox, and the script need not wait to learn it.
    assert others == [["gaierror", True]] * 2
    assert not {TUNNEL, roles.NAME} & set(world.asked())
    assert sorted(resolver.asked) == ["api.example", "two.example"]
    named = {("tcp", "api.example", 443), ("udp", "two.example", 80)}
    assert answers == named | spoken(roles.ELSEWHERE, roles.NAME_SERVER)


async def test_where_the_internet_is_open_a_question_does_leave(world: World) -> None:
    question = f"control.{TUNNEL}"
    async with open_sandbox(world, egress_dns=[roles.NAME_SERVER]) as sandbox:
        (answer,) = json.loads(await lab.output_of(sandbox, LOOK_UP.replace("NAMES", repr([question]))))
    assert answer[0] == "gaierror"
    assert question in world.asked()


async def test_dockers_resolver_does_not_take_a_question(world: World) -> None:
    resolver = targets("127.0.0.11", kinds=("tcp", "udp"), port=53)
    assert await opened(world, roles.INTERNET, wanted=resolver) == set()


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        (roles.METADATA, f"api.example has the address {roles.METADATA}, which is never opened"),
        ("127.0.0.1", "api.example has the address 127.0.0.1, which is never opened"),
        (roles.INTERNAL, f"api.example has the private address {roles.INTERNAL}"),
    ],
)
async def test_a_name_that_means_an_address_inside_starts_no_sandbox(
    world: World, address: str, complaint: str
) -> None:
    with names({"api.example": [roles.INTERNET, address]}):
        async with lab.open_backend(egress="allowlist", egress_allow=["api.example"]) as backend:
            with pytest.raises(BackendUnavailable, match=complaint):
                await backend.start()


async def test_a_name_with_a_private_address_is_reached_as_its_network_is_opened(world: World) -> None:
    wanted: list[Target] = [("tcp", "db.internal", port) for port in (80, 443)]
    with names({"db.internal": [roles.INTERNAL]}):
        answers = await opened(world, "db.internal", "10.11.12.0/28:443", wanted=wanted)
    assert answers == {("tcp", "db.internal", 443)}


async def test_a_name_server_that_is_down_delays_sandboxes_and_does_not_open_or_cripple_them(world: World) -> None:
    with names({}) as resolver:
        async with lab.open_backend(egress="allowlist", egress_allow=["api.example"]) as backend:
            with pytest.raises(BackendUnavailable, match=r"api\.example cannot be resolved: Name or service not known"):
                await backend.start()
            resolver.known["api.example"] = [roles.INTERNET]
            sandbox = await backend.start()
            await sandbox.aclose()
            assert "egress allowlist" in backend.description


async def test_a_sandbox_is_not_used_again_when_its_addresses_are_old(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with names({"api.example": [roles.INTERNET]}):
        async with open_sandbox(world, egress="allowlist", egress_allow=["api.example"]) as sandbox:
            fresh = sandbox.reusable
            monkeypatch.setattr(network, "ADDRESSES_LAST", 0)
            assert (fresh, sandbox.reusable) == (True, False)
    async with open_sandbox(world, egress="allowlist", egress_allow=[roles.INTERNET]) as sandbox:
        assert sandbox.reusable, "networks do not age"
