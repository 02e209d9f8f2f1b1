"""What a sandbox may reach: everything public and nothing private, or only what a list allows.

The rules are iptables rules inside the sandbox's own network namespace, where root of the sandbox, without NET_ADMIN,
cannot change them. This module only writes them down and judges what was read back; it does no I/O.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from continuum.egress import NEVER, PRIVATE, Address, Network, is_within

POLICY_VERSION = 2
"""Grows with every change of the rules or of the network's options."""
ADDRESSES_LAST = 600.0
"""Seconds for which a name's addresses are used: names move, and what was theirs may become somebody else's."""

_REJECT = {4: "icmp-admin-prohibited", 6: "icmp6-adm-prohibited"}
_COMMANDS = {4: "iptables", 6: "ip6tables"}

NO_IPV6 = "# there is no IPv6 here"
"""What stands for the IPv6 rules where the kernel has no IPv6 to restrict."""

SCRIPT = f"""
set -eu
# Where the kernel lacks nf_tables the older interface may do; both are filters, and a packet must pass each of them.
apply() {{
    if printf '%s\\n' "$2" | "$1-restore" 2>/tmp/why; then "$1-save" -t filter; return; fi
    cat /tmp/why >&2
    printf '%s\\n' "$2" | "$1-legacy-restore"
    "$1-legacy-save" -t filter
}}
apply iptables "$1"
if [ -e /proc/net/if_inet6 ]; then apply ip6tables "$2"; else echo '{NO_IPV6}'; fi
"""
"""Shell: set the IPv4 rules `$1` and the IPv6 rules `$2`, and print what then is in force. Needs NET_ADMIN (and
NET_RAW for the older interface), and a writable /tmp and /run."""


class PolicyError(Exception):
    """The network policy cannot be had, or is not in force; the message says why."""


@dataclass(frozen=True, slots=True)
class Opening:
    """A network that may be reached by TCP and UDP, at one port or (None) at all."""

    network: Network
    port: int | None = None

    @property
    def is_private(self) -> bool:
        """Whether it opens private addresses. A network that is wider than a private range means its public ones."""
        return is_within(self.network, PRIVATE[self.network.version])


@dataclass(frozen=True, slots=True)
class Allowlist:
    """What a list of entries opens. hosts: its names, and their addresses at `resolved_at`, a time of Trio's clock."""

    openings: tuple[Opening, ...]
    hosts: tuple[tuple[str, Address], ...]
    resolved_at: float

    def is_current(self, now: float) -> bool:
        """Whether its addresses may still be used; networks do not age."""
        return not self.hosts or now - self.resolved_at < ADDRESSES_LAST


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """What the sandboxes of one network may reach, by TCP and UDP; without an allowlist they may ping, too.

    subnets: the network's own, its gateway's address included. allowlist: None allows everything public.
    host: the addresses of the machine that runs the sandboxes; no list opens them.
    resolvers: the name servers that Docker's resolver may ask, empty for all; none with an allowlist.
    """

    subnets: tuple[Network, ...] = ()
    allowlist: Allowlist | None = None
    host: tuple[Address, ...] = ()
    resolvers: tuple[Address, ...] = ()

    @property
    def extra_hosts(self) -> list[str]:
        """The allowlist's names with their addresses, of the IP versions that the network has, as Docker takes them."""
        if self.allowlist is None:
            return []
        versions = {4, *(subnet.version for subnet in self.subnets)}
        return [f"{name}:{address}" for name, address in self.allowlist.hosts if address.version in versions]

    def rules(self, version: int) -> list[str]:
        """The rules for IP version 4 or 6, as `iptables-save` prints them."""
        refuse = f"-j REJECT --reject-with {_REJECT[version]}"
        return [
            ":INPUT DROP",
            ":FORWARD DROP",
            ":OUTPUT DROP",
            "-A INPUT -i lo -j ACCEPT",
            "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            # IPv6 finds its neighbours by multicast on the link; without it there is no IPv6 at all.
            *(_NEIGHBOUR_DISCOVERY if version == 6 else ()),
            *self._resolver_rules(version),
            "-A OUTPUT -o lo -j ACCEPT",
            # What follows judges the first packet of a connection; nothing is established that it did not let pass.
            "-A OUTPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT",
            *(f"-A OUTPUT -d {network} {refuse}" for network in self._closed(version)),
            *_accept(opening for opening in self._openings(version) if opening.is_private),
            *(f"-A OUTPUT -d {network} {refuse}" for network in PRIVATE[version]),
            *_accept(opening for opening in self._openings(version) if not opening.is_private),
            *([_PING[version]] if self.allowlist is None else ()),
            f"-A OUTPUT {refuse}",
        ]

    def _resolver_rules(self, version: int) -> list[str]:
        """Docker's resolver listens on the sandbox's loopback, and asks name servers, which often have private
        addresses, from here, as root. Scripts are never root."""
        if self.allowlist is not None:
            # Any query may carry a message to whoever answers for the name. Where the host's name server listens on
            # the host's loopback, Docker asks it from there, past these rules: so the question is refused.
            return [f"-A OUTPUT -d {_DOCKERS_RESOLVER} -j REJECT --reject-with {_REJECT[4]}"] if version == 4 else []
        places = [f"-d {_network_of(resolver)} " for resolver in self.resolvers if resolver.version == version]
        return [
            f"-A OUTPUT {place}-p {protocol} -m {protocol} --dport 53 -m owner --uid-owner 0 -j ACCEPT"
            for place in (places if self.resolvers else [""])
            for protocol in ("udp", "tcp")
        ]

    def _closed(self, version: int) -> list[Network]:
        """What nothing opens: the sandboxes' own network and the host, too, where other rules do not see to that."""
        opened = [opening.network for opening in self._openings(version) if opening.is_private]
        own = [*self.subnets, *(_network_of(address) for address in self.host)]
        return [
            *NEVER[version],
            *(
                network
                for network in dict.fromkeys(own)
                if network.version == version
                and not is_within(network, NEVER[version])
                and (not is_within(network, PRIVATE[version]) or any(map(network.overlaps, opened)))
            ),
        ]

    def _openings(self, version: int) -> list[Opening]:
        openings = _EVERYTHING if self.allowlist is None else self.allowlist.openings
        return [opening for opening in openings if opening.network.version == version]

    def restore_input(self, version: int) -> str:
        """The rules as `iptables-restore` takes them."""
        return "\n".join(["*filter", *(_with_counters(rule) for rule in self.rules(version)), "COMMIT"])

    def command(self) -> list[str]:
        """The command that sets the rules in its own network namespace and prints what is in force."""
        return ["/bin/sh", "-c", SCRIPT, "sh", self.restore_input(4), self.restore_input(6)]

    def verify(self, printed: str) -> None:
        """Raise `PolicyError` unless what the command printed shows exactly these rules."""
        tables = printed.split("*filter\n")[1:]
        without_ipv6 = len(tables) == 1 and NO_IPV6 in tables[0].splitlines()
        if len(tables) != 2 and not without_ipv6:
            raise PolicyError("the rules in force could not be read back")
        for version, table in zip((4, 6), tables, strict=False):
            difference = _difference(self.rules(version), table.splitlines())
            if difference:
                raise PolicyError(f"{_COMMANDS[version]} shows other rules than were set: {difference}")


_EVERYTHING = (Opening(ipaddress.IPv4Network("0.0.0.0/0")), Opening(ipaddress.IPv6Network("::/0")))
_DOCKERS_RESOLVER = "127.0.0.11/32"
_PING = {
    4: "-A OUTPUT -p icmp -m icmp --icmp-type 8 -j ACCEPT",
    6: "-A OUTPUT -p ipv6-icmp -m icmp6 --icmpv6-type 128 -j ACCEPT",
}
_NEIGHBOUR_DISCOVERY = (
    "-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 135 -j ACCEPT",
    "-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 136 -j ACCEPT",
    "-A OUTPUT -p ipv6-icmp -m icmp6 --icmpv6-type 135 -j ACCEPT",
    "-A OUTPUT -p ipv6-icmp -m icmp6 --icmpv6-type 136 -j ACCEPT",
)


def _accept(openings: Iterable[Opening]) -> list[str]:
    rules = []
    for opening in openings:
        place = f"-d {opening.network} " if opening.network.prefixlen else ""
        for protocol in ("tcp", "udp"):
            port = f" -m {protocol} --dport {opening.port}" if opening.port is not None else ""
            rules.append(f"-A OUTPUT {place}-p {protocol}{port} -j ACCEPT")
    return rules


def _network_of(address: Address) -> Network:
    return ipaddress.ip_network(address)


def _with_counters(rule: str) -> str:
    return f"{rule} [0:0]" if rule.startswith(":") else rule


def _difference(expected: Sequence[str], shown: Iterable[str]) -> str:
    """The first difference between two tables, empty when they say the same in the same order."""
    wanted = [_canonical(rule) for rule in expected]
    found = [_canonical(line) for line in shown if line.startswith((":", "-"))]
    for want, have in zip(wanted, found, strict=False):
        if want != have:
            return f"{' '.join(have)!r} where {' '.join(want)!r} should be"
    if len(wanted) != len(found):
        return f"{len(found)} rules where {len(wanted)} should be"
    return ""


def _canonical(rule: str) -> list[str]:
    """A rule's words, without counters, addresses in the one form that every version of iptables prints alike."""
    words = rule.partition(" [")[0].split()
    if "-d" in words:
        place = words.index("-d") + 1
        words[place] = str(ipaddress.ip_network(words[place]))
    return words
