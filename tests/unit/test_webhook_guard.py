"""Where deliveries may go: exactly where tasks may, whatever a URL looks like and whatever its name means a moment later."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable

import httpcore
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from continuum.egress import NEVER, PRIVATE, Address, AllowEntry, Network, Reach, parse_allow
from continuum.nursery.webhook_network import ANSWER_LIMIT, GuardedNetwork, Refused, system_resolver
from continuum.sandbox.network import Allowlist, EgressPolicy, Opening
from tests.support.receivers import Internet, internet

BLOCKS: list[Network] = [*NEVER[4], *NEVER[6], *PRIVATE[4], *PRIVATE[6]]
HOST = (ipaddress.ip_address("203.0.113.9"), ipaddress.ip_address("10.9.9.9"), ipaddress.ip_address("2a00::9"))


def _beside(block: Network) -> st.SearchStrategy[Address]:
    """Addresses in a block and just outside."""
    kind: Callable[[int], Address] = ipaddress.IPv4Address if block.version == 4 else ipaddress.IPv6Address
    first, last = int(block[0]), int(block[-1])
    top = 2**block.max_prefixlen - 1
    return st.sampled_from(sorted({max(0, first - 1), first, last, min(top, last + 1)})).map(kind) | st.integers(
        first, last
    ).map(kind)


addresses = st.one_of(
    st.sampled_from(BLOCKS).flatmap(_beside), st.ip_addresses(v=4), st.ip_addresses(v=6), st.sampled_from(HOST)
)
ports = st.sampled_from([80, 443, 8443])
entries = st.lists(
    st.builds(
        AllowEntry,
        st.sampled_from(
            [ipaddress.ip_network(text) for text in
             ("0.0.0.0/0", "::/0", "10.0.0.0/8", "10.9.9.0/24", "100.0.0.0/8", "100.64.0.0/10", "203.0.113.0/24", "fc00::/7",
              "fd00::/16", "2a00::/16", "64:ff9b::/96", "192.168.0.0/15", "172.16.5.5/32")]
        ),
        st.none() | ports,
    ),
    max_size=4,
)  # fmt: skip


def _passes(rules: list[str], address: Address, port: int) -> bool:
    """What the kernel would do with the first packet of a connection by TCP from a sandbox's user."""
    for rule in rules:
        words = rule.split()
        if words[:2] != ["-A", "OUTPUT"] or "-o" in words or "conntrack" in words or "owner" in words:
            continue
        if "-p" in words and words[words.index("-p") + 1] != "tcp":
            continue
        if "-d" in words and address not in ipaddress.ip_network(words[words.index("-d") + 1]):
            continue
        if "--dport" in words and int(words[words.index("--dport") + 1]) != port:
            continue
        return words[words.index("-j") + 1] == "ACCEPT"
    return False


@given(addresses, ports, st.none() | entries)
def test_a_delivery_goes_where_a_task_may_and_nowhere_else(
    address: Address, port: int, listed: list[AllowEntry] | None
) -> None:
    openings = [Opening(entry.target, entry.port) for entry in listed or [] if not isinstance(entry.target, str)]
    policy = EgressPolicy(allowlist=None if listed is None else Allowlist(tuple(openings), (), 0.0), host=HOST)
    reach = Reach(None if listed is None else tuple(listed), HOST)
    assert (reach.refusal(None, address, port) is None) == _passes(policy.rules(address.version), address, port)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254", "169.254.170.2",
     "100.100.100.200", "168.63.129.16", "192.0.0.192", "255.255.255.255", "224.0.0.1", "::", "::1", "::127.0.0.1",
     "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:8.8.8.8", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:a::1",
     "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::10.0.0.1", "64:ff9b:1::1", "fe80::1", "fc00::1", "fd00:ec2::254",
     "ff02::1", "203.0.113.9", "2a00::9"],
)  # fmt: skip
@pytest.mark.parametrize("allow", [None, "0.0.0.0/0,::/0,hooks.example"])
def test_nothing_inside_is_reached_by_any_form_of_its_address(address: str, allow: str | None) -> None:
    listed = None if allow is None else parse_allow(allow.split(","))
    assert Reach(listed, HOST).refusal("hooks.example", ipaddress.ip_address(address), 443)
    assert Reach(listed, HOST).refusal(None, ipaddress.ip_address(address), 443)


def test_a_list_opens_names_at_their_ports_and_networks_at_theirs() -> None:
    reach = Reach(parse_allow(["hooks.example:443", "10.1.2.0/24:8443", "198.51.100.0/24"]))

    def closed(name: str | None, address: str, port: int) -> str | None:
        return reach.refusal(name, ipaddress.ip_address(address), port)

    assert closed("hooks.example", "203.0.113.7", 443) is None
    assert closed("hooks.example", "203.0.113.7", 80) == "EGRESS_ALLOW does not name 203.0.113.7, port 80"
    assert closed("other.example", "203.0.113.7", 443)
    assert closed(None, "203.0.113.7", 443)
    assert closed(None, "198.51.100.7", 80) is None
    assert closed("other.example", "198.51.100.7", 80) is None
    assert closed("anything.internal", "10.1.2.3", 8443) is None
    assert (
        closed("hooks.example", "10.1.2.3", 443) == "EGRESS_ALLOW does not name the private address 10.1.2.3, port 443"
    )
    assert closed("hooks.example", "10.1.3.1", 443)


class Answers:
    """A name server of the test: each question gets the next answer, the last one for ever."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, name: str) -> list[Address]:
        self.asked.append(name)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [ipaddress.ip_address(each) for each in answer]


async def nothing(stream: trio.abc.Stream) -> None:
    await stream.receive_some()


def everywhere(net: Internet, *places: str, port: int = 443) -> None:
    net.hosts.update({(place, port): nothing for place in places})


async def test_a_name_is_looked_up_once_and_the_address_that_was_judged_is_connected_to(
    autojump_clock: MockClock,
) -> None:
    rebinding = Answers(["203.0.113.7"], ["169.254.169.254"], ["127.0.0.1"])
    async with internet() as net:
        everywhere(net, "203.0.113.7", "169.254.169.254", "127.0.0.1")
        network = GuardedNetwork(Reach, rebinding, net)
        await (await network.connect_tcp("hooks.example", 443)).aclose()
        assert net.connections == [("203.0.113.7", 443)]
        assert rebinding.asked == ["hooks.example"]
        for inside in ("169.254.169.254", "127.0.0.1"):
            with pytest.raises(Refused, match=f"hooks.example may not be reached: {inside}"):
                await network.connect_tcp("hooks.example", 443)
    assert net.connections == [("203.0.113.7", 443)]


@pytest.mark.parametrize("inside", ["127.0.0.1", "10.0.0.1", "::1", "::ffff:203.0.113.7", "fe80::1"])
async def test_one_closed_address_among_those_of_a_name_closes_it(inside: str, autojump_clock: MockClock) -> None:
    for answer in (["203.0.113.7", inside], [inside, "203.0.113.7"]):
        async with internet() as net:
            everywhere(net, "203.0.113.7", inside)
            with pytest.raises(Refused, match=f"{ipaddress.ip_address(inside)} is"):
                await GuardedNetwork(Reach, Answers(answer), net).connect_tcp("hooks.example", 443)
        assert not net.connections


async def test_an_address_is_judged_without_any_name_server(autojump_clock: MockClock) -> None:
    names = Answers(["203.0.113.7"])
    async with internet() as net:
        everywhere(net, "203.0.113.7", "2001:4860::7")
        network = GuardedNetwork(Reach, names, net)
        for open_ in ("203.0.113.7", "2001:4860::7"):
            await network.connect_tcp(open_, 443)
        for closed in ("127.0.0.1", "::1", "169.254.169.254", "fe80::1%1"):
            with pytest.raises(Refused):
                await network.connect_tcp(closed, 443)
    assert not names.asked


async def test_the_next_address_is_tried_where_one_is_silent(autojump_clock: MockClock) -> None:
    async with internet() as net:
        everywhere(net, "203.0.113.8")
        network = GuardedNetwork(Reach, Answers(["203.0.113.7", "203.0.113.8"]), net)
        await network.connect_tcp("hooks.example", 443)
        many = [f"203.0.113.{number}" for number in range(20, 40)]
        with pytest.raises(httpcore.ConnectError, match=r"203\.0\.113\.23"):
            await GuardedNetwork(Reach, Answers(many), net).connect_tcp("hooks.example", 443)
        with pytest.raises(httpcore.ConnectError, match="no address"):
            await GuardedNetwork(Reach, Answers([]), net).connect_tcp("hooks.example", 443)


async def test_no_socket_of_this_machine_is_opened() -> None:
    with pytest.raises(Refused):
        await GuardedNetwork(Reach).connect_unix_socket("/run/docker.sock")


async def test_only_so_much_is_read_of_an_answer(autojump_clock: MockClock) -> None:
    async def flood(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        while True:
            await stream.send_all(b"x" * 10_000)

    async with internet() as net:
        net.hosts["203.0.113.7", 443] = flood
        stream = await GuardedNetwork(Reach, network=net).connect_tcp("203.0.113.7", 443)
        await stream.write(b"now")
        received = 0
        with pytest.raises(httpcore.ReadError, match=f"more than {ANSWER_LIMIT} bytes"):
            while True:
                received += len(await stream.read(4096))
        assert received == ANSWER_LIMIT


async def test_the_system_knows_names() -> None:
    found = await system_resolver("localhost")
    assert all(address.is_loopback for address in found)
    with pytest.raises(httpcore.ConnectError, match=r"no-such-host\.invalid cannot be resolved"):
        await system_resolver("no-such-host.invalid")


async def test_a_name_server_that_never_answers_holds_no_thread_that_others_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    silence = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: silence.wait(30) and [])
    try:
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(system_resolver, "slow.example")
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(5):
                assert await trio.to_thread.run_sync(lambda: "free") == "free"
            nursery.cancel_scope.cancel()
    finally:
        silence.set()
