"""The addresses of a machine, which sandboxes on it must not reach: all that listens there trusts its neighbours more
than the internet. The private ones are closed anyway; a machine in a data centre often has public ones."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path

from continuum.egress import Address

ADDRESS_FILES = ("/proc/net/fib_trie", "/proc/net/if_inet6")
"""Where Linux lists the addresses of the reader's network namespace; the second is missing where there is no IPv6."""

_LEAF = re.compile(r"\|-- (\d+\.\d+\.\d+\.\d+)", re.ASCII)
_IPV6 = re.compile(r"([0-9a-f]{32}) [0-9a-f]+ [0-9a-f]+ [0-9a-f]+ [0-9a-f]+ +\S+", re.ASCII)


def parse_addresses(text: str) -> tuple[Address, ...]:
    """The addresses in the text of ADDRESS_FILES, each once, those of the loopback included."""
    return tuple(dict.fromkeys(_addresses(text)))


def own_addresses() -> tuple[Address, ...]:
    """The addresses in this process's network namespace, which may be another than the container engine's."""
    return parse_addresses("".join(Path(file).read_text() for file in ADDRESS_FILES if Path(file).exists()))


def _addresses(text: str) -> Iterator[Address]:
    leaf = ""
    for line in text.splitlines():
        if found := _LEAF.search(line):
            leaf = found[1]
        elif line.split() == ["/32", "host", "LOCAL"]:
            yield ipaddress.IPv4Address(leaf)
        elif found := _IPV6.fullmatch(line.strip()):
            yield ipaddress.IPv6Address(int(found[1], 16))
