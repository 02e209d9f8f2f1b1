"""A world of the test's own: one container that answers for every address, public and private, and a network from which
every route leads to it. No packet that a test sends there reaches anything else.
"""

from __future__ import annotations

import ipaddress
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import docker.errors
import docker.types

from continuum.sandbox.docker import DockerSandbox
from continuum.sandbox.docker_network import NETWORK_LABEL
from tests.support import docker as lab

PORTS = (53, 80, 443)
NAME = "service.example"
"""The only name that the world's name servers know; it has the address INTERNET."""

INTERNET = "203.0.113.10"
ELSEWHERE = "198.51.100.7"
NAME_SERVER = "203.0.113.53"
PRIVATE_NAME_SERVER = "10.11.12.53"
INTERNAL = "10.11.12.13"
METADATA = "169.254.169.254"
INTERNET_IPV6 = "2001:db8:1::10"
INTERNAL_IPV6 = "fd12:3456::7"
METADATA_IPV6 = "fd00:ec2::254"

PUBLIC = (INTERNET, ELSEWHERE, NAME_SERVER)
PUBLIC_IPV6 = (INTERNET_IPV6, "64:ff9b::203.0.113.10")
CLOSED = (
    INTERNAL, PRIVATE_NAME_SERVER, METADATA, "172.16.9.9", "192.168.77.7", "100.64.1.1", "100.100.100.200",
    "168.63.129.16", "192.0.0.192", "198.18.0.7", "240.0.0.7",
)  # fmt: skip
CLOSED_IPV6 = (
    INTERNAL_IPV6, METADATA_IPV6, "fd20:ce::254", "fec0::7", "64:ff9b::10.11.12.13", "64:ff9b::169.254.169.254",
    "64:ff9b:1::7", "2002:a0b:c0d::1", "2001:0:a0b:c0d::1", "::10.11.12.13", "5f00::7", "1000::7", "8000::7",
)  # fmt: skip
MULTICAST = ("239.1.2.3", "255.255.255.255")
LINK_IPV6 = ("fe80::77%eth0",)
MULTICAST_IPV6 = ("ff02::77%eth0",)

_ROUTES = '''
import fcntl, socket, struct, sys, time
ADD, DELETE, UP, GATEWAY = 0x890B, 0x890C, 1, 2

def change_ipv4(action, gateway):
    def address(text): return struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(text))
    flags = UP | (GATEWAY if gateway else 0)
    route = struct.pack("@L16s16s16sHhLPhPLLH", 0, address("0.0.0.0"), address(gateway or "0.0.0.0"),
                        address("0.0.0.0"), flags, 0, 0, 0, 0, 0, 0, 0, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, action, route)

def change_ipv6(action, gateway, interface):
    index = socket.if_nametoindex(interface)
    route = struct.pack("@16s16s16sIHHILIi", bytes(16), bytes(16), socket.inet_pton(socket.AF_INET6, gateway or "::"),
                        0, 0, 0, 0, 0, UP | (GATEWAY if gateway else 0), index)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, action, route)

def drop_defaults():
    for change in (lambda: change_ipv4(DELETE, ""), lambda: change_ipv6(DELETE, "", "eth0")):
        try:
            while True:
                change()
        except OSError:
            pass

def defaults():
    """Where every default route leads."""
    found = []
    for line in open("/proc/net/route").read().splitlines()[1:]:
        fields = line.split()
        if fields[1] == fields[7] == "00000000":
            found.append(socket.inet_ntoa(struct.pack("=I", int(fields[2], 16))))
    try:
        lines = open("/proc/net/ipv6_route").read().splitlines()
    except OSError:
        lines = []
    for line in lines:
        fields = line.split()
        if fields[1] == "00" and fields[9] != "lo":
            found.append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(fields[4])))
    return found

def wait_for_addresses():
    """Until the kernel has made sure that nobody else has this namespace's IPv6 addresses: it does not use them before."""
    try:
        while any(int(line.split()[4], 16) & 0x40 for line in open("/proc/net/if_inet6")):
            time.sleep(0.02)
    except FileNotFoundError:
        pass
'''

_LEAD = (
    _ROUTES
    + """
drop_defaults()
change_ipv4(ADD, sys.argv[1])
if sys.argv[2]:
    change_ipv6(ADD, sys.argv[2], "eth0")
wait_for_addresses()
print(sorted(defaults()) == sorted(filter(None, sys.argv[1:3])), defaults())
"""
)
"""Make `argv[1]` (IPv4) and `argv[2]` (IPv6, or empty) the only gateways of a network namespace; print whether they are."""

_SERVE = (
    _ROUTES
    + '''
import json, selectors, threading
ipv4, ipv6, group, group_ipv6, ports, name, answer = json.loads(sys.argv[1])

def place_ipv4(number, text):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for request, value in ((0x8916, text), (0x891C, "255.255.255.255")):
            packed = struct.pack("=16sHH4s20x", f"lo:{number}".encode(), socket.AF_INET, 0, socket.inet_aton(value))
            fcntl.ioctl(control, request, packed)

def place_ipv6(text, interface, length):
    packed = struct.pack("=16sIi", socket.inet_pton(socket.AF_INET6, text), length, socket.if_nametoindex(interface))
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8916, packed)

def reply_to(question):
    """An answer of a name server, that knows one address."""
    labels, place = [], 12
    while question[place]:
        labels.append(question[place + 1 : place + 1 + question[place]].decode())
        place += 1 + question[place]
    asked, kind = ".".join(labels), question[place + 1 : place + 3]
    print("asked", asked, flush=True)
    known = asked.lower() == name
    answers = 1 if known and kind == bytes([0, 1]) else 0
    head = question[:2] + struct.pack("!HHHHH", 0x8180 if known else 0x8183, 1, answers, 0, 0)
    record = bytes.fromhex("c00c00010001000000050004") + socket.inet_aton(answer)
    return head + question[12 : place + 5] + record * answers

def serve_tcp(family, port):
    with socket.create_server(("", port), family=family, backlog=64) as server:
        while True:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"world")

def serve_udp(family, port):
    with socket.socket(family, socket.SOCK_DGRAM) as server:
        if family == socket.AF_INET:
            level, option, shape = socket.IPPROTO_IP, 8, "=i4s4s"
            server.setsockopt(level, option, 1)
            server.setsockopt(level, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(group) +
                              struct.pack("@4si", bytes(4), socket.if_nametoindex("eth0")))
        else:
            level, option, shape = socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, "=16si"
            server.setsockopt(level, socket.IPV6_V6ONLY, 1)
            server.setsockopt(level, socket.IPV6_RECVPKTINFO, 1)
            server.setsockopt(level, socket.IPV6_JOIN_GROUP, socket.inet_pton(family, group_ipv6) +
                              struct.pack("@i", socket.if_nametoindex("eth0")))
        server.bind(("", port))
        while True:
            question, extras, _, sender = server.recvmsg(2048, 256)
            source = []
            for _, _, data in extras:  # answer from the address that was asked
                if family == socket.AF_INET:
                    source = [(level, option, struct.pack(shape, 0, data[4:8], bytes(4)))]
                elif data[0] != 0xFF:
                    source = [(level, option, data)]
            server.sendmsg([reply_to(question) if port == 53 and len(question) > 12 else b"world"], source, 0, sender)

drop_defaults()
for number, text in enumerate(ipv4):
    place_ipv4(number, text)
families = [socket.AF_INET]
if ipv6:
    families.append(socket.AF_INET6)
    for text in ipv6:
        link = text.startswith("fe80")
        place_ipv6(text, "eth0" if link else "lo", 64 if link else 128)
for family in families:
    for port in ports:
        for serve in (serve_tcp, serve_udp):
            threading.Thread(target=serve, args=(family, port), daemon=True).start()
def listening():
    files = ["/proc/net/tcp", "/proc/net/udp"] + (["/proc/net/tcp6", "/proc/net/udp6"] if ipv6 else [])
    return all(f":{port:04X} " in open(file).read() for file in files for port in ports)
while not listening():
    pass
wait_for_addresses()
assert not defaults(), defaults()
print("ready", flush=True)
threading.Event().wait()
'''
)

_REACH = """
import concurrent.futures, json, socket, struct
def reach(kind, address, port):
    try:
        family, _, _, _, target = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
        if kind == "tcp":
            with socket.socket(family, socket.SOCK_STREAM) as connection:
                connection.settimeout(0.5 if address.startswith("fe80") else 5)
                connection.connect(target)
                return connection.recv(100).decode()
        ping = {socket.AF_INET: socket.IPPROTO_ICMP, socket.AF_INET6: socket.IPPROTO_ICMPV6}[family]
        with socket.socket(family, socket.SOCK_DGRAM, ping if kind == "ping" else 0) as channel:
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            channel.settimeout(0.5 if kind == "ping" else 2)
            echo = struct.pack("!BBHHH", 8 if family == socket.AF_INET else 128, 0, 0, 0, 1)
            channel.sendto(echo if kind == "ping" else b"hello", target)
            answer = channel.recv(100)
            return "world" if kind == "ping" else answer.decode()
    except OSError as error:
        return type(error).__name__ + ": " + str(error)
# A refused connection learns of it with its second packet, a second later, or with its third, two more seconds later:
# the kernel sends only so many messages of that kind at once. So wait for many together.
with concurrent.futures.ThreadPoolExecutor(32) as threads:
    print(json.dumps(list(threads.map(lambda target: reach(*target), TARGETS))))
"""

Target = tuple[str, str, int]
"""How (`tcp`, `udp`, `ping`), whom, and at which port."""


def targets(*addresses: str, kinds: tuple[str, ...] = ("tcp", "udp", "ping"), port: int = 80) -> list[Target]:
    """Every way to every address."""
    return [(kind, address, port) for address in addresses for kind in kinds]


def reach(wanted: list[Target]) -> str:
    """A script that tries each target and prints, as JSON, `world` for each that answered, or an error."""
    return _REACH.replace("TARGETS", repr(wanted))


def answered(wanted: list[Target], printed: str) -> set[Target]:
    """The targets that answered. All others must have been refused by a rule, not lost on their way."""
    results = dict(zip(wanted, json.loads(printed), strict=True))
    lost = {target: result for target, result in results.items() if result != "world" and not _refused(target, result)}
    assert not lost, lost
    return {target for target, result in results.items() if result == "world"}


def _refused(target: Target, result: str) -> bool:
    """EPERM for a datagram; what the rule's own ICMP message means for a connection. Of a ping, and of a connection on
    the link, IPv6 does not tell its sender that it was refused."""
    kind, address, _ = target
    silent = ":" in address and (kind == "ping" or address.startswith("fe80"))
    refusals = ("PermissionError: [Errno 1]", "PermissionError: [Errno 13]", "OSError: [Errno 113]")
    return result.startswith(refusals) or (silent and result == "TimeoutError: timed out")


@dataclass(frozen=True)
class World:
    """ipv6: the world's address on its network, empty where the daemon has no IPv6."""

    network: str
    container: str
    ipv4: str
    ipv6: str
    gateway: str

    def lead(self, container: str) -> None:
        """Make every route of a container lead here. Nothing may be sent from it before."""
        code = ["python3", "-I", "-c", _LEAD, self.ipv4, self.ipv6]
        printed = beside(container, code, "NET_ADMIN")
        assert printed.startswith("True"), printed

    def targets(self, ipv4: list[Target], ipv6: list[Target]) -> list[Target]:
        """Those of both lists that a test can have here."""
        return [*ipv4, *(ipv6 if self.ipv6 else [])]

    def asked(self) -> list[str]:
        """The names that its name servers were asked for, in order."""
        with lab.api() as client:
            lines: list[str] = client.logs(self.container).decode().splitlines()
        return [line.removeprefix("asked ") for line in lines if line.startswith("asked ")]


@asynccontextmanager
async def open_sandbox(world: World, **values: Any) -> AsyncIterator[DockerSandbox]:
    """A sandbox from which every route leads into the world, whose network backends must use."""
    async with lab.open_backend(**{"egress": "public", **values}) as backend:
        sandbox = await backend.start()
        try:
            assert f"egress {values.get('egress', 'public')}" in backend.description, backend.description
            world.lead(sandbox.name)
            yield sandbox
        finally:
            await sandbox.aclose()


def beside(container: str, command: list[str], *capabilities: str) -> str:
    """What a command prints that runs as root, with capabilities, in a container's network namespace."""
    specification = {
        "Image": lab.IMAGE,
        "User": "0:0",
        "Entrypoint": command,
        "HostConfig": {"NetworkMode": f"container:{container}", "CapDrop": ["ALL"], "CapAdd": list(capabilities)},
    }
    name = f"continuum-beside-{secrets.token_hex(4)}"
    with lab.api() as client:
        try:
            client.create_container_from_config(specification, name)
            client.start(name)
            client.wait(name)
            printed: bytes = client.logs(name)
            return printed.decode()
        finally:
            lab.remove(client, name)


@contextmanager
def open_world() -> Iterator[World]:
    """A world on a network of its own, on which containers may talk to each other; all of it is removed at the end."""
    name = f"continuum-{lab.new_worker()}"
    with lab.api() as client:
        has_ipv6 = _make_network(client, name)
        try:
            ipv6 = [*PUBLIC_IPV6, *CLOSED_IPV6, *(text.partition("%")[0] for text in LINK_IPV6)] if has_ipv6 else []
            roles = [
                [*PUBLIC, *CLOSED],
                [str(ipaddress.ip_address(text)) for text in ipv6],
                MULTICAST[0],
                MULTICAST_IPV6[0].partition("%")[0],
                PORTS,
                NAME,
                INTERNET,
            ]
            specification = {
                "Image": lab.IMAGE,
                "User": "0:0",
                "Entrypoint": ["python3", "-I", "-c", _SERVE, json.dumps(roles)],
                "HostConfig": {
                    "NetworkMode": name,
                    "CapDrop": ["ALL"],
                    "CapAdd": ["NET_ADMIN", "NET_BIND_SERVICE"],
                    "Sysctls": {"net.ipv4.ip_forward": "0"},
                },
            }
            client.create_container_from_config(specification, name)
            client.start(name)
            _wait_until_ready(client, name)
            found = client.inspect_container(name)["NetworkSettings"]["Networks"][name]
            yield World(name, name, found["IPAddress"], found["GlobalIPv6Address"], found["Gateway"])
        finally:
            lab.remove(client, name)
            client.remove_network(name)


def _wait_until_ready(client: Any, name: str) -> None:
    deadline = time.monotonic() + 20
    while b"ready" not in (printed := client.logs(name)):
        assert client.inspect_container(name)["State"]["Running"], printed.decode()
        assert time.monotonic() < deadline, printed.decode()
        time.sleep(0.02)


def _make_network(client: Any, name: str) -> bool:
    """Make the network, with IPv6 where the daemon can; return whether it has it."""
    options = {"driver": "bridge", "labels": {NETWORK_LABEL: "test"}}
    subnet = f"2001:db8:{secrets.randbelow(0xEFFF) + 0x1000:x}::/64"
    pool = docker.types.IPAMConfig(pool_configs=[docker.types.IPAMPool(subnet=subnet)])
    try:
        client.create_network(name, enable_ipv6=True, ipam=pool, **options)
    except docker.errors.APIError:
        client.create_network(name, **options)
        return False
    return True
