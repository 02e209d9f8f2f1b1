"""What a sandbox may reach: everything public, nothing private.

The rules are iptables rules inside the sandbox's own network namespace, where root of the sandbox, without NET_ADMIN,
cannot change them. This module only writes them down and judges what was read back; it does no I/O.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

IPv4 = ipaddress.IPv4Network
IPv6 = ipaddress.IPv6Network

BLOCKED_IPV4 = tuple(
    IPv4(block)
    for block in (
        "0.0.0.0/8",  # this network; Linux takes 0.0.0.0 for the host itself
        "10.0.0.0/8",
        "100.64.0.0/10",  # carriers' own addresses, and a cloud's metadata service
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's host agent, on a public address
        "169.254.0.0/16",  # link-local, and most clouds' metadata services
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)

BLOCKED_IPV6 = (
    *(
        IPv6(block)
        for block in (
            "::/96",  # unspecified, loopback, and the deprecated form of IPv4 addresses
            "::ffff:0:0/96",  # IPv4 addresses
            "64:ff9b:1::/48",  # translation within a private network
            "2001::/32",  # Teredo: IPv4 addresses inside
            "2002::/16",  # 6to4: IPv4 addresses inside
            "fc00::/7",  # private
            "fe80::/10",  # link-local
            "fec0::/10",  # private, deprecated
            "ff00::/8",  # multicast
        )
    ),
    # What the translation of a provider (NAT64) would turn into a blocked IPv4 address.
    *(IPv6((int(IPv6("64:ff9b::/96")[0]) + int(block[0]), 96 + block.prefixlen)) for block in BLOCKED_IPV4),
)

POLICY_VERSION = 1
"""Grows with every change of the rules or of the network's options."""

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
    """The rules that are in force are not those that should be; the message says where they differ."""


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """What is blocked, for one network of sandboxes. subnets: the network's own, its gateway's address included."""

    subnets: tuple[IPv4 | IPv6, ...] = ()

    def rules(self, version: int) -> list[str]:
        """The rules for IP version 4 or 6, as `iptables-save` prints them."""
        blocks: Sequence[IPv4 | IPv6] = BLOCKED_IPV4 if version == 4 else BLOCKED_IPV6
        own = [subnet for subnet in self.subnets if subnet.version == version and subnet not in blocks]
        return [
            ":INPUT DROP",
            ":FORWARD DROP",
            ":OUTPUT ACCEPT",
            "-A INPUT -i lo -j ACCEPT",
            "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            # IPv6 finds its neighbours by multicast on the link; without it there is no IPv6 at all.
            *(_NEIGHBOUR_DISCOVERY if version == 6 else ()),
            "-A OUTPUT -o lo -j ACCEPT",
            # Docker's resolver, which listens on the sandbox's loopback, asks the host's name server from here, as
            # root, and that server often has a private address. Scripts are never root.
            "-A OUTPUT -p udp -m udp --dport 53 -m owner --uid-owner 0 -j ACCEPT",
            "-A OUTPUT -p tcp -m tcp --dport 53 -m owner --uid-owner 0 -j ACCEPT",
            *(f"-A OUTPUT -d {block} -j REJECT --reject-with {_REJECT[version]}" for block in (*blocks, *own)),
        ]

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


_NEIGHBOUR_DISCOVERY = (
    "-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 134 -j ACCEPT",
    "-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 135 -j ACCEPT",
    "-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 136 -j ACCEPT",
    "-A OUTPUT -p ipv6-icmp -m icmp6 --icmpv6-type 135 -j ACCEPT",
    "-A OUTPUT -p ipv6-icmp -m icmp6 --icmpv6-type 136 -j ACCEPT",
)


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
