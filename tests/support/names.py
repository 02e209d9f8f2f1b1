"""What names mean, as a test decides it."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio


class Names(trio.abc.HostnameResolver):
    """Answers for the names in `known`, each with its addresses, after `delay` seconds. `asked` lists the questions."""

    def __init__(self, known: dict[str, list[str]]) -> None:
        self.known = known
        self.delay = 0.0
        self.asked: list[str] = []

    async def getaddrinfo(
        self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        name = host.decode() if isinstance(host, bytes) else str(host)
        self.asked.append(name)
        await trio.sleep(self.delay)
        if name not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        found = []
        for address in self.known[name]:
            version = ipaddress.ip_address(address).version
            family = {4: socket.AF_INET, 6: socket.AF_INET6}[version]
            found.append((family, type, 0, "", (address, 0) if version == 4 else (address, 0, 0, 0)))
        return found

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


@contextmanager
def names(known: dict[str, list[str]]) -> Iterator[Names]:
    """Within the block, names mean this and nothing else."""
    resolver = Names(known)
    before = trio.socket.set_custom_hostname_resolver(resolver)
    try:
        yield resolver
    finally:
        trio.socket.set_custom_hostname_resolver(before)
