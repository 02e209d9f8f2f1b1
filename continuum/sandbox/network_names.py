"""An allowlist with its names turned into addresses.

Sandboxes with an allowlist ask no name server; they are told these addresses, and only these are open. Whoever answers
for a name therefore decides what is opened: an address that is not public is not taken from them.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Sequence

import trio

from continuum.egress import NEVER, PRIVATE, Address, AllowEntry, is_within
from continuum.sandbox.network import Allowlist, Opening, PolicyError

RESOLVE_DEADLINE = 5.0
"""Seconds for all names of a list, which are looked up side by side, while a cold start waits."""
MOST_OPENINGS = 512
"""Each becomes two rules; all of them must fit into one argument of a command."""


async def resolve(entries: Iterable[AllowEntry]) -> Allowlist:
    """Look up the names of a list.

    Raises `PolicyError`, naming the host, for one that has no address, or an address that is not public and that no
    network of the list covers.
    """
    entries = tuple(entries)
    began = trio.current_time()
    names = list(dict.fromkeys(entry.target for entry in entries if isinstance(entry.target, str)))
    addresses: dict[str, tuple[Address, ...]] = {}
    failures: dict[str, str] = {}

    async def look_up(name: str) -> None:
        try:
            with trio.fail_after(RESOLVE_DEADLINE):
                found = await trio.socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except trio.TooSlowError:
            failures[name] = f"{name} was not resolved within {RESOLVE_DEADLINE:g} s"
        except OSError as error:
            failures[name] = f"{name} cannot be resolved: {error.strerror or error}"
        else:
            # An IPv6 address may bear a zone, which makes it another address.
            answers = (ipaddress.ip_address(str(sockaddr[0]).partition("%")[0]) for *_, sockaddr in found)
            addresses[name] = tuple(dict.fromkeys(answers))

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(look_up, name)
    for name in names:
        if name in failures:
            raise PolicyError(failures[name])
    return _combine(entries, addresses, began)


def _combine(entries: Sequence[AllowEntry], addresses: dict[str, tuple[Address, ...]], began: float) -> Allowlist:
    openings = [Opening(entry.target, entry.port) for entry in entries if not isinstance(entry.target, str)]
    private = [opening.network for opening in openings if opening.is_private]
    for entry in entries:
        if not isinstance(entry.target, str):
            continue
        for address in addresses[entry.target]:
            network = ipaddress.ip_network(address)
            if is_within(network, NEVER[address.version]):
                raise PolicyError(f"{entry.target} has the address {address}, which is never opened")
            if not is_within(network, PRIVATE[address.version]):
                openings.append(Opening(network, entry.port))
            elif not is_within(network, private):
                raise PolicyError(
                    f"{entry.target} has the private address {address}: if that is meant, allow {network} as well"
                )
            # The entry that opens the private network says which ports; a name adds none.
    openings = list(dict.fromkeys(openings))
    if len(openings) > MOST_OPENINGS:
        raise PolicyError(
            f"the allowlist comes to {len(openings)} addresses and networks, at most {MOST_OPENINGS} work"
        )
    return Allowlist(
        tuple(openings), tuple((name, address) for name, found in addresses.items() for address in found), began
    )
