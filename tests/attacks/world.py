"""The network that attacks meet: one container that plays every private service, and routes that lead there.

No packet leaves the bridge: each address that an attack tries is routed to that container, in the sandbox's own network
namespace, before any attack is sent there. Where a route cannot be set, nothing is sent.
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import trio

from tests.attacks.network import PORT, PRIVATE, PRIVATE_IPV6
from tests.attacks.probe import NotASandbox
from tests.support import docker as lab

_V4 = [address for address, _ in PRIVATE.values()]
_V6 = [address for address, _ in PRIVATE_IPV6.values()]

SERVE = f"""
import fcntl, socket, struct, threading
control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number, address in enumerate({_V4!r}):
    name = b"lo:%d" % (number + 1)
    fcntl.ioctl(control, 0x8916, struct.pack("16sHH4s8x", name, socket.AF_INET, 0, socket.inet_aton(address)))
    fcntl.ioctl(control, 0x891C, struct.pack("16sHH4s8x", name, socket.AF_INET, 0, b"\\xff" * 4))
try:
    control6 = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    for address in {_V6!r}:
        fcntl.ioctl(control6, 0x8916, struct.pack("16sIi", socket.inet_pton(socket.AF_INET6, address), 128, 1))
except OSError as error:
    print("no IPv6:", error)

def tcp():
    with socket.create_server(("::", {PORT}), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        while True:
            connection, _ = server.accept()
            try: connection.sendall(b"this is private")
            except OSError: pass
            connection.close()

def udp(port, group=None):
    server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.bind(("::", port))
    if group:
        server.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP,
                          struct.pack("4s4si", socket.inet_aton(group), bytes(4), socket.if_nametoindex("eth0")))
    while True:
        _, whence = server.recvfrom(1000)
        try: server.sendto(b"this is private", whence)
        except OSError: pass

for port, group in (({PORT}, None), (53, None), (5353, "224.0.0.251")):
    threading.Thread(target=udp, args=(port, group), daemon=True).start()
threading.Thread(target=tcp, daemon=True).start()
print("ready", flush=True)
import time
time.sleep(900)
"""

ROUTE = f"""
import ctypes, fcntl, json, os, socket, struct, sys
via, via6 = sys.argv[1:]
address = lambda text: struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(text))
control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for target in {_V4!r}:
    route = struct.pack("L16s16s16sHhLPh6xPLLH", 0, address(target), address(via), address("255.255.255.255"),
                        7, 0, 0, 0, 0, 0, 0, 0, 0)
    fcntl.ioctl(control, 0x890B, route)
routed = {{}}
for line in list(open("/proc/net/route"))[1:]:
    words = line.split()
    routed[socket.inet_ntoa(bytes.fromhex(words[1])[::-1])] = socket.inet_ntoa(bytes.fromhex(words[2])[::-1])
assert all(routed.get(target) == via for target in {_V4!r}), routed
lines = list(open("/proc/net/ipv6_route")) if os.path.exists("/proc/net/ipv6_route") else []
index = socket.if_nametoindex("eth0")
if any(line.split()[-1] == "eth0" for line in lines):
    assert via6, "there is IPv6 here, and no way to keep it"
    control6 = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    for target in {_V6!r}:
        message = struct.pack("16s16s16sIHHILIi", socket.inet_pton(socket.AF_INET6, target), bytes(16),
                              socket.inet_pton(socket.AF_INET6, via6), 0, 128, 0, 1, 0, 7, index)
        fcntl.ioctl(control6, 0x890B, message)
print("routed")
"""


@dataclass(frozen=True, slots=True)
class World:
    """One network with its services. gateway_port: where something listens on the host, at the gateway's address.
    neighbour, neighbour6, link_local: the addresses of the container that plays the rest."""

    network: str
    gateway: str
    gateway_port: int
    neighbour: str
    neighbour6: str
    link_local: str

    @property
    def facts(self) -> dict[str, Any]:
        """What an attacker may know of it."""
        return {
            "gateway": self.gateway,
            "gateway_port": self.gateway_port,
            "neighbour": self.neighbour,
            "link_local": self.link_local,
        }

    async def admit(self, sandbox: str) -> None:
        """Set the routes in a sandbox of this network. Raises `NotASandbox` when they are not all there."""
        said = await trio.to_thread.run_sync(_routed, sandbox, self.neighbour, self.neighbour6)
        if said != "routed\n":
            raise NotASandbox(f"the routes in {sandbox} could not be set: {said}")


def _routed(sandbox: str, via: str, via6: str) -> str:
    specification = {
        "Image": lab.IMAGE,
        "Entrypoint": ["python3", "-I", "-c", ROUTE, via, via6],
        "Cmd": [],
        "HostConfig": {"NetworkMode": f"container:{sandbox}", "CapDrop": ["ALL"], "CapAdd": ["NET_ADMIN"]},
    }
    name = f"{sandbox}-routes-{secrets.token_hex(3)}"
    with lab.api() as client:
        try:
            client.create_container_from_config(specification, name)
            client.start(name)
            client.wait(name, timeout=20)
            said: bytes = client.logs(name)
            return said.decode()
        finally:
            lab.remove(client, name)


@asynccontextmanager
async def open_world(network: str) -> AsyncIterator[World]:
    """The services on an existing network, gone when the block ends."""
    name = f"continuum-attack-{secrets.token_hex(4)}"
    try:
        found = await trio.to_thread.run_sync(_start_services, name, network)
        with _listener(found["Gateway"]) as port:
            yield World(
                network=network,
                gateway=found["Gateway"],
                gateway_port=port,
                neighbour=found["IPAddress"],
                neighbour6=found.get("GlobalIPv6Address") or "",
                link_local=await trio.to_thread.run_sync(_link_local, name),
            )
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(_remove, name)


def _start_services(name: str, network: str) -> dict[str, Any]:
    specification = {
        "Image": lab.IMAGE,
        "Entrypoint": ["python3", "-I", "-c", SERVE],
        "Cmd": [],
        "HostConfig": {"NetworkMode": network, "CapAdd": ["NET_ADMIN"], "Memory": 64 << 20, "PidsLimit": 32},
    }
    with lab.api() as client:
        client.create_container_from_config(specification, name)
        client.start(name)
        for line in client.logs(name, stream=True, follow=True):
            if b"ready" in line:
                break
        else:
            raise AssertionError(f"the services did not start: {client.logs(name)!r}")
        networks: dict[str, dict[str, Any]] = client.inspect_container(name)["NetworkSettings"]["Networks"]
        return next(iter(networks.values()))


def _link_local(name: str) -> str:
    look = "import os; print(open('/proc/net/if_inet6').read() if os.path.exists('/proc/net/if_inet6') else '')"
    with lab.api() as client:
        made = client.exec_create(name, ["python3", "-I", "-c", look])
        printed: bytes = client.exec_start(made["Id"])
    for line in printed.decode().splitlines():
        words = line.split()
        if words and words[-1] == "eth0" and words[0].startswith("fe80"):
            return str(ipaddress.IPv6Address(bytes.fromhex(words[0])))
    return ""


def _remove(name: str) -> None:
    with lab.api() as client:
        lab.remove(client, name)


@asynccontextmanager
async def open_network() -> AsyncIterator[str]:
    """A bridge network without any protection, with IPv4 and IPv6; gives its name."""
    name = f"continuum-attack-{secrets.token_hex(4)}"
    prefix = f"fd{secrets.token_hex(1)}:{secrets.token_hex(2)}:{secrets.token_hex(2)}::/64"

    def make() -> None:
        with lab.api() as client:
            client.create_network(name, driver="bridge", enable_ipv6=True, ipam={"Config": [{"Subnet": prefix}]})

    def remove() -> None:
        with lab.api() as client:
            client.remove_network(name)

    await trio.to_thread.run_sync(make)
    try:
        yield name
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(remove)


@contextmanager
def _listener(host: str) -> Iterator[int]:
    """A server on an address of this machine that greets everybody; gives its port."""
    with socket.create_server((host, 0)) as server:

        def greet() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                    with connection:
                        connection.sendall(b"this is the host")
                except OSError:
                    return

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def visit(address: str, port: int = 9090, seconds: float = 2.0) -> str:
    """What happens to somebody who connects from the host: a sentence when it is let in, else nothing."""
    give_up = threading.Event()
    timer = threading.Timer(seconds, give_up.set)
    timer.start()
    try:
        while not give_up.is_set():
            try:
                socket.create_connection((address, port), timeout=0.5).close()
                return f"somebody outside connected to {address} port {port}"
            except OSError:
                give_up.wait(0.05)
    finally:
        timer.cancel()
    return ""
