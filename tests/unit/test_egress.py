"""EGRESS_ALLOW as text, the addresses its names get, and the addresses of a machine."""

from __future__ import annotations

import ipaddress
from contextlib import suppress

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from continuum.egress import MOST_ENTRIES, NEVER, AllowEntry, is_within, parse_allow, parse_resolvers
from continuum.sandbox.network import ADDRESSES_LAST, Allowlist, Opening, PolicyError
from continuum.sandbox.network_host import own_addresses, parse_addresses
from continuum.sandbox.network_names import MOST_OPENINGS, RESOLVE_DEADLINE, resolve
from tests.support.names import names


def network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(text)


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("api.example.com", AllowEntry("api.example.com")),
        ("API.Example.com.", AllowEntry("api.example.com")),
        ("api.example.com:443", AllowEntry("api.example.com", 443)),
        ("_srv.xn--bcher-kva.example", AllowEntry("_srv.xn--bcher-kva.example")),
        ("internal", AllowEntry("internal")),
        (" 203.0.113.7 ", AllowEntry(network("203.0.113.7/32"))),
        ("203.0.113.0/24", AllowEntry(network("203.0.113.0/24"))),
        ("10.1.2.0/24:5432", AllowEntry(network("10.1.2.0/24"), 5432)),
        ("2001:db8::7", AllowEntry(network("2001:db8::7/128"))),
        ("2001:db8::/32", AllowEntry(network("2001:db8::/32"))),
        ("[2001:db8::7]:443", AllowEntry(network("2001:db8::7/128"), 443)),
        ("[2001:db8::/32]:443", AllowEntry(network("2001:db8::/32"), 443)),
        ("[2001:db8::7]", AllowEntry(network("2001:db8::7/128"))),
        ("0.0.0.0/0", AllowEntry(network("0.0.0.0/0"))),
    ],
)
def test_an_entry_is_a_name_or_a_network_with_or_without_a_port(text: str, entry: AllowEntry) -> None:
    (parsed,) = parse_allow([text])
    assert parsed == entry
    assert parse_allow([str(parsed)]) == (entry,)


@pytest.mark.parametrize(
    "text",
    [
        "", "a b", "http://example.com", "example.com/path", "user@example.com", "-a.example", "a..example", "ß.example",
        "a" * 64, ".".join(["a" * 60] * 5), "example.com:0", "example.com:65536", "example.com:http", "example.com:",
        "example.com:٣", "[example.com]:80", "[203.0.113.7]:80", "[2001:db8::7", "203.0.113.7/33",
        # An old form of an IPv4 address, which a resolver might take for one.
        "127.1", "2130706433", "0x7f.1", "0x7f000001", "010.0.0.1", "1.2.3.4.5",
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_the_entry_in_the_message(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_allow(["fine.example", text])
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("10.1.2.3/24", "write 10.1.2.0/24, or 10.1.2.3 for the one address"),
        ("*.example.com", "list every name"),
        ("localhost", "the sandbox itself"),
        ("x.localhost:80", "the sandbox itself"),
        ("host.docker.internal", "the sandbox itself"),
        ("fe80::1%eth0", "a zone means link-local"),
    ],
)
def test_a_likely_mistake_is_explained(text: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        parse_allow([text])


@pytest.mark.parametrize(
    "text",
    ["127.0.0.1", "127.0.0.0/8", "169.254.169.254", "169.254.169.254:80", "169.254.0.0/16", "0.0.0.0", "224.0.0.1",
     "255.255.255.255", "100.100.100.200", "168.63.129.16", "192.0.0.192", "::1", "::", "::ffff:10.0.0.1", "fe80::1",
     "ff02::1", "fd00:ec2::254", "[fd20:ce::254]:80", "64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "2002:a00:1::/48"],
)  # fmt: skip
def test_loopback_link_local_and_metadata_addresses_cannot_be_listed_in_any_form(text: str) -> None:
    with pytest.raises(ValueError, match="can never be opened"):
        parse_allow([text])


def test_a_list_has_no_duplicates_and_an_end() -> None:
    assert len(parse_allow(["a.example", "A.example.", "a.example:80"])) == 2
    with pytest.raises(ValueError, match=f"at most {MOST_ENTRIES}"):
        parse_allow(f"n{number}.example" for number in range(MOST_ENTRIES + 1))


@given(st.text(max_size=40))
def test_no_text_crashes_the_parser_or_opens_what_is_never_opened(text: str) -> None:
    with suppress(ValueError):
        (entry,) = parse_allow([text])
        assert isinstance(entry.target, str) or not is_within(entry.target, NEVER[entry.target.version])


def test_resolvers_are_addresses() -> None:
    assert [str(found) for found in parse_resolvers(["9.9.9.9", " 10.0.0.2", "2620:fe::fe"])] == [
        "9.9.9.9",
        "10.0.0.2",
        "2620:fe::fe",
    ]
    for wrong in (["dns.example"], ["9.9.9.9:53"], ["127.0.0.53"], ["0.0.0.0"], [f"9.9.9.{n}" for n in range(4)]):
        with pytest.raises(ValueError):
            parse_resolvers(wrong)


async def resolved(known: dict[str, list[str]], *entries: str) -> Allowlist:
    with names(known):
        return await resolve(parse_allow(entries))


def openings(allowlist: Allowlist) -> list[str]:
    return [str(AllowEntry(opening.network, opening.port)) for opening in allowlist.openings]


async def test_a_name_opens_all_its_addresses_at_its_port(autojump_clock: trio.abc.Clock) -> None:
    known = {"api.example": ["203.0.113.7", "203.0.113.8", "2001:db8::7"]}
    allowlist = await resolved(known, "api.example:443")
    assert openings(allowlist) == ["203.0.113.7/32:443", "203.0.113.8/32:443", "[2001:db8::7/128]:443"]
    assert [(name, str(address)) for name, address in allowlist.hosts] == [
        ("api.example", address) for address in known["api.example"]
    ]


async def test_networks_need_no_name_server(autojump_clock: trio.abc.Clock) -> None:
    with names({}) as resolver:
        allowlist = await resolve(parse_allow(["203.0.113.0/24", "[2001:db8::7]:443"]))
    assert openings(allowlist) == ["203.0.113.0/24", "[2001:db8::7/128]:443"]
    assert not allowlist.hosts
    assert not resolver.asked


async def test_a_name_of_several_entries_is_asked_for_once(autojump_clock: trio.abc.Clock) -> None:
    with names({"a.example": ["203.0.113.7"]}) as resolver:
        allowlist = await resolve(parse_allow(["a.example:80", "a.example:443"]))
    assert openings(allowlist) == ["203.0.113.7/32:80", "203.0.113.7/32:443"]
    assert resolver.asked == ["a.example"]


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "169.254.169.254", "::1", "::ffff:203.0.113.7", "fe80::1", "100.100.100.200"]
)
async def test_an_address_that_is_never_opened_is_not_opened_by_a_name(
    address: str, autojump_clock: trio.abc.Clock
) -> None:
    with pytest.raises(PolicyError, match=r"evil\.example has the address .* which is never opened"):
        await resolved({"evil.example": ["203.0.113.7", address]}, "evil.example", "0.0.0.0/0", "::/0")


@pytest.mark.parametrize("also", ["203.0.113.0/24", "0.0.0.0/0", "10.1.3.0/24", "other.example"])
async def test_a_private_address_is_not_opened_by_a_name(also: str, autojump_clock: trio.abc.Clock) -> None:
    known = {"evil.example": ["10.1.2.3"], "other.example": ["203.0.113.7"]}
    with pytest.raises(PolicyError, match=r"evil\.example has the private address 10\.1\.2\.3: .* 10\.1\.2\.3/32"):
        await resolved(known, "evil.example", also)


async def test_a_private_address_in_a_listed_network_is_told_and_opened_as_the_network_is(
    autojump_clock: trio.abc.Clock,
) -> None:
    allowlist = await resolved({"db.internal": ["10.1.2.3"]}, "db.internal", "10.1.2.0/24:5432")
    assert openings(allowlist) == ["10.1.2.0/24:5432"]
    assert [name for name, _ in allowlist.hosts] == ["db.internal"]


async def test_a_name_without_an_address_is_named(autojump_clock: trio.abc.Clock) -> None:
    with pytest.raises(PolicyError, match=r"^b\.example cannot be resolved: Name or service not known$"):
        await resolved({"a.example": ["203.0.113.7"]}, "a.example", "b.example")


async def test_a_silent_name_server_is_not_waited_for_longer_than_once(autojump_clock: trio.abc.Clock) -> None:
    began = trio.current_time()
    with names({}) as resolver:
        resolver.delay = 3600
        with pytest.raises(PolicyError, match=r"a\.example was not resolved within 5 s"):
            await resolve(parse_allow(["a.example", "b.example", "c.example"]))
    assert trio.current_time() - began == pytest.approx(RESOLVE_DEADLINE)


async def test_more_addresses_than_rules_can_hold_are_refused(autojump_clock: trio.abc.Clock) -> None:
    many = [str(ipaddress.IPv4Address("203.0.0.0") + n) for n in range(MOST_OPENINGS + 1)]
    with pytest.raises(PolicyError, match=f"{len(many)} addresses and networks, at most {MOST_OPENINGS}"):
        await resolved({"many.example": many}, "many.example")


async def test_real_names_are_looked_up_by_the_system() -> None:
    # No name server is asked for this one. What it means is never opened, whoever answers.
    with pytest.raises(PolicyError, match="localhost has the address"):
        await resolve([AllowEntry("localhost")])


def test_addresses_age_and_networks_do_not() -> None:
    opening = (Opening(network("203.0.113.7/32")),)
    named = Allowlist(opening, (("api.example", ipaddress.ip_address("203.0.113.7")),), resolved_at=1000.0)
    assert named.is_current(1000.0 + ADDRESSES_LAST - 1)
    assert not named.is_current(1000.0 + ADDRESSES_LAST)
    assert Allowlist(opening, (), resolved_at=1000.0).is_current(1e9)


LISTED = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 203.0.113.0/24 2 0 2
        |-- 203.0.113.0
           /24 link UNICAST
Local:
  +-- 0.0.0.0/0 3 0 5
     |-- 127.0.0.1
        /32 host LOCAL
     |-- 203.0.113.9
        /32 host LOCAL
     |-- 203.0.113.255
        /32 link BROADCAST
20010db8000000000000000000000009 04 40 00 82     eth0
00000000000000000000000000000001 01 80 10 80       lo
"""


def test_the_addresses_of_a_machine_are_read_from_its_kernel() -> None:
    assert [str(address) for address in parse_addresses(LISTED)] == ["127.0.0.1", "203.0.113.9", "2001:db8::9", "::1"]


def test_this_machine_has_a_loopback() -> None:
    assert ipaddress.ip_address("127.0.0.1") in own_addresses()
