"""What sandboxes may reach, in words: which addresses are public, private or out of the question, and EGRESS_ALLOW.

Nothing here does I/O: names stay names.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

IPv4Network = ipaddress.IPv4Network
IPv6Network = ipaddress.IPv6Network
Network = IPv4Network | IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

PRIVATE_IPV4 = tuple(
    IPv4Network(block)
    for block in (
        "10.0.0.0/8",
        "100.64.0.0/10",  # carriers' own addresses, and those of many overlay networks
        "172.16.0.0/12",
        "192.168.0.0/16",
        "198.18.0.0/15",  # for benchmarks within a network
    )
)

NEVER_IPV4 = tuple(
    IPv4Network(block)
    for block in (
        "0.0.0.0/8",  # this network; Linux takes 0.0.0.0 for the host itself
        "100.100.100.200/32",  # a cloud's metadata service
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's host agent, on a public address
        "169.254.0.0/16",  # link-local, and most clouds' metadata services
        "192.0.0.0/24",  # for protocols; a cloud's metadata service
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)

PRIVATE_IPV6 = (IPv6Network("fc00::/7"),)

_NAT64 = int(IPv6Network("64:ff9b::/96")[0])

NEVER_IPV6 = (
    *(
        IPv6Network(block)
        for block in (
            "::/96",  # unspecified, loopback, and the deprecated form of IPv4 addresses
            "::ffff:0:0/96",  # IPv4 addresses
            "64:ff9b:1::/48",  # translation within a private network
            "2001::/32",  # Teredo: IPv4 addresses inside
            "2002::/16",  # 6to4: IPv4 addresses inside
            # Clouds' metadata services, in private ranges that an operator may have opened.
            "fd00:42::42/128",
            "fd00:100::100:200/128",
            "fd00:a9fe:a9fe::1/128",
            "fd00:c1::a9fe:a9fe/128",
            "fd00:ec2::/32",
            "fd20:ce::254/128",
            # All that is not assigned to the internet: what a network does with it is its own affair.
            "100::/8",
            "200::/7",
            "400::/6",
            "800::/5",
            "1000::/4",
            "4000::/2",
            "8000::/2",
            "c000::/3",
            "e000::/4",
            "f000::/5",
            "f800::/6",
            "fe00::/7",  # link-local, deprecated private, multicast
        )
    ),
    # What the translation of a provider (NAT64) would turn into an IPv4 address that is not public.
    *(IPv6Network((_NAT64 + int(block[0]), 96 + block.prefixlen)) for block in (*NEVER_IPV4, *PRIVATE_IPV4)),
)

PRIVATE: dict[int, tuple[Network, ...]] = {4: PRIVATE_IPV4, 6: PRIVATE_IPV6}
"""By IP version: closed, unless EGRESS_ALLOW names a network inside."""

NEVER: dict[int, tuple[Network, ...]] = {4: NEVER_IPV4, 6: NEVER_IPV6}
"""By IP version: closed, whatever anybody allows."""

REDIRECTED_HOSTS = ("host.docker.internal", "gateway.docker.internal", "metadata.google.internal")
"""Names that elsewhere lead out of the sandbox to its host; here they lead to the sandbox itself."""

MOST_ENTRIES = 256
"""A list of this length is better written as wider networks; the rules that it becomes have a bound, too."""

_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_NUMERIC = re.compile(r"(?:\d+|0x[0-9a-f]*)", re.ASCII)
"""A last label that makes some resolvers read the whole as an IPv4 address in one of its old forms."""
_ALLOWED = (
    "use host names and networks, each with or without a port, separated by commas: "
    "api.example.com:443, 203.0.113.0/24, 10.1.2.0/24:5432, [2001:db8::/32]:443"
)


@dataclass(frozen=True, slots=True)
class AllowEntry:
    """Something that sandboxes may reach by TCP and UDP: a host by its name, or a network. port: None means all."""

    target: str | Network
    port: int | None = None

    def __str__(self) -> str:
        if self.port is None:
            return str(self.target)
        return f"[{self.target}]:{self.port}" if ":" in str(self.target) else f"{self.target}:{self.port}"


def parse_allow(entries: Iterable[str]) -> tuple[AllowEntry, ...]:
    """Read entries such as EGRESS_ALLOW lists. Raises ValueError, with a text that names the entry."""
    parsed = tuple(dict.fromkeys(_parse(entry.strip()) for entry in entries))
    if len(parsed) > MOST_ENTRIES:
        raise ValueError(f"{len(parsed)} entries are too many: list at most {MOST_ENTRIES}, with wider networks")
    return parsed


def parse_resolvers(addresses: Iterable[str]) -> tuple[Address, ...]:
    """Read the addresses of name servers. Raises ValueError."""
    try:
        parsed = tuple(dict.fromkeys(ipaddress.ip_address(address.strip()) for address in addresses))
    except ValueError:
        raise ValueError("use IP addresses of name servers, separated by commas, such as 9.9.9.9") from None
    for address in parsed:
        if address.is_loopback or address.is_unspecified or address.is_multicast:
            raise ValueError(f"{address} is the sandbox itself or no single server: name one that it can reach")
    if len(parsed) > _MOST_RESOLVERS:
        raise ValueError(f"list at most {_MOST_RESOLVERS}: resolvers ask no more")
    return parsed


_MOST_RESOLVERS = 3


def is_within(network: Network, blocks: Iterable[Network]) -> bool:
    """Whether all of a network lies in one of the blocks."""
    return any(network.version == block.version and network.subnet_of(block) for block in blocks)  # type: ignore[arg-type]


def host_name(text: str) -> str | None:
    """A host's name in lower case and without a last dot; None for what is no name, old forms of an IPv4 address included."""
    host = text.lower().removesuffix(".")
    if not _HOST.fullmatch(host) or len(host) > 253 or _NUMERIC.fullmatch(host.rpartition(".")[2]):
        return None
    return host


@dataclass(frozen=True, slots=True)
class Reach:
    """What the worker itself connects to where a task says so: the rules of sandboxes, for one connection by TCP.

    allow: None opens everything public. host: the machine's own addresses, which nothing opens.
    """

    allow: tuple[AllowEntry, ...] | None = None
    host: tuple[Address, ...] = ()

    def refusal(self, name: str | None, address: Address, port: int) -> str | None:
        """Why an address, which `name` has (None: it was given as an address), is closed at this port; None where it is open."""
        network = ipaddress.ip_network(address)
        if is_within(network, NEVER[address.version]) or address in self.host:
            return f"{address} is loopback, link-local, multicast, metadata or this machine, which nothing opens"
        private = is_within(network, PRIVATE[address.version])
        if self.allow is None:
            return f"{address} is private" if private else None
        if any(entry.port in (None, port) and _opens(entry, name, network, private) for entry in self.allow):
            return None
        return f"EGRESS_ALLOW does not name {'the private address ' if private else ''}{address}, port {port}"


def _opens(entry: AllowEntry, name: str | None, network: Network, private: bool) -> bool:
    if isinstance(entry.target, str):
        # Whoever answers for a name decides what it means: it opens nothing that is private.
        return entry.target == name and not private
    # A network that is wider than a private range means its public addresses.
    return is_within(network, [entry.target]) and (not private or is_within(entry.target, PRIVATE[network.version]))


def _parse(text: str) -> AllowEntry:
    target, port = _split_port(text)
    network = _network(text, target)
    if network is not None:
        if is_within(network, NEVER[network.version]):
            raise ValueError(
                f"{text} can never be opened: it is loopback, link-local, multicast, a metadata service, "
                "or another form of such an address"
            )
        return AllowEntry(network, port)
    if "*" in target:
        raise ValueError(f"{text} cannot be used: a sandbox is told the addresses of each name, so list every name")
    host = host_name(target)
    if host is None:
        raise ValueError(f"{text!r} cannot be used: {_ALLOWED}")
    if host in REDIRECTED_HOSTS or host.rpartition(".")[2] == "localhost":
        raise ValueError(f"{text} can never be opened: in a sandbox this name means the sandbox itself")
    return AllowEntry(host, port)


def _split_port(text: str) -> tuple[str, int | None]:
    bracketed = re.fullmatch(r"\[([^\[\]]+)\](?::(.*))?", text, re.DOTALL)
    if bracketed:
        target, port = bracketed.groups()
        if ":" not in target:
            raise ValueError(f"{text!r} cannot be used: {_ALLOWED}")
    elif text.count(":") == 1:
        target, _, port = text.partition(":")
    else:
        target, port = text, None
    if port is None:
        return target, None
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(f"{text!r} has no port from 1 to 65535 after its last colon")
    return target, int(port)


def _network(text: str, target: str) -> Network | None:
    """The network that a target means, None when it is no address at all."""
    try:
        network = ipaddress.ip_network(target, strict=False)
    except ValueError:
        return None
    if "%" in target:
        raise ValueError(f"{text} can never be opened: a zone means link-local addresses")
    address, _, _ = target.partition("/")
    if ipaddress.ip_address(address) != network.network_address:
        raise ValueError(f"{text} is no network: write {network}, or {address} for the one address")
    return network
