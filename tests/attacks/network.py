"""Over the network: the host, the metadata service, private networks, other sandboxes, and the network itself.

Every address leads to a host that the test has made: see `tests.support.world`.
"""

from __future__ import annotations

from tests.attacks.attack import Attack, Onlooker, Place
from tests.support import world

_HELPERS = """
def greet(address, port, family=socket.AF_INET, scope=0):
    with socket.socket(family) as client:
        client.settimeout(1.5)
        client.connect((address, port) if family == socket.AF_INET else (address, port, 0, scope))
        succeeded("%s port %d says %r" % (address, port, client.recv(100)))

def ask(address, port, option=None, family=socket.AF_INET, scope=0):
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(1.5)
        if option: client.setsockopt(socket.SOL_SOCKET, option, 1)
        client.sendto(b"question", (address, port) if family == socket.AF_INET else (address, port, 0, scope))
        answer, whence = client.recvfrom(100)
        succeeded("%s answers %r" % (whence, answer))

def interface():
    names = [name for _, name in socket.if_nameindex() if name != "lo"]
    if not names: stopped("there is no network")
    return names[0]
"""


def _network(name: str, wants: str, code: str, needs: str = "", onlooker: Onlooker = Onlooker.NOBODY) -> Attack:
    return Attack(
        name=name,
        wants=wants,
        code=_HELPERS + code,
        needs=needs,
        place=Place.NETWORK,
        onlooker=onlooker,
        timeout=8.0,
    )


PRIVATE = {
    "metadata": (world.METADATA, "the credentials that a cloud's metadata service gives to whoever asks"),
    "10": (world.INTERNAL, "a service of the internal network (10/8)"),
    "172": ("172.16.9.9", "a service of the internal network (172.16/12)"),
    "192": ("192.168.77.7", "a service of the internal network (192.168/16)"),
    "carrier": ("100.64.1.1", "a service of the provider's network (100.64/10)"),
    "carrier-metadata": ("100.100.100.200", "another cloud's metadata service"),
    "host-agent": ("168.63.129.16", "a cloud's host agent, on a public address"),
    "assigned": ("192.0.0.192", "a metadata service among assigned addresses (192.0.0/24)"),
    "benchmark": ("198.18.0.7", "a network that is meant for nobody (198.18/15)"),
    "reserved": ("240.0.0.7", "a network that is reserved, and used by some (240/4)"),
}
"""Addresses that the test's own world answers for, and what they stand for."""
PRIVATE_IPV6 = {
    "metadata": (world.METADATA_IPV6, "the metadata service over IPv6"),
    "other-metadata": ("fd20:ce::254", "another cloud's metadata service over IPv6"),
    "unique-local": (world.INTERNAL_IPV6, "a service of the internal network over IPv6 (fc00::/7)"),
    "translated": ("64:ff9b::169.254.169.254", "the metadata service by its provider's translation (NAT64)"),
    "tunnelled": ("2002:a0b:c0d::1", "a service of the internal network through a tunnel (6to4)"),
}
PORT = 80

assert {address for address, _ in PRIVATE.values()} <= set(world.CLOSED)
assert {address for address, _ in PRIVATE_IPV6.values()} <= set(world.CLOSED_IPV6)

ATTACKS = (
    *(_network(f"connect-{name}", wants, f"greet({address!r}, {PORT})") for name, (address, wants) in PRIVATE.items()),
    *(
        _network(f"connect-ipv6-{name}", wants, f"greet({address!r}, {PORT}, socket.AF_INET6)")
        for name, (address, wants) in PRIVATE_IPV6.items()
    ),
    _network(
        "connect-ipv4-in-ipv6",
        "the metadata service by an IPv4 address inside an IPv6 one",
        f"greet('::ffff:169.254.169.254', {PORT}, socket.AF_INET6)",
    ),
    _network(
        "connect-link-local",
        "a neighbour on the same link over IPv6",
        f"greet('fe80::77', {PORT}, socket.AF_INET6, socket.if_nametoindex(interface()))",
    ),
    _network(
        "connect-gateway",
        "what listens on the host, by the address of the gateway",
        "greet(WORLD.get('gateway') or stopped('there is no gateway'), WORLD['gateway_port'])",
    ),
    _network(
        "connect-host-by-name",
        "what listens on the host, by the name that Docker gives it",
        """
for name in ("host.docker.internal", "gateway.docker.internal"):
    try:
        greet(name, WORLD["gateway_port"])
    except OSError as error:
        why = error
stopped(why)
""",
    ),
    _network(
        "connect-neighbour",
        "another container on the same network",
        f"greet(WORLD.get('neighbour') or stopped('there is no neighbour'), {PORT})",
    ),
    _network(
        "fast-open",
        "the metadata service with data in the first packet, past what looks at connections",
        f"""
with socket.socket() as client:
    for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
        client.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", 1, 500000))
    client.sendto(b"GET /", 0x20000000, ("169.254.169.254", {PORT}))
    succeeded(client.recv(100))
""",
    ),
    _network("udp-metadata", "the metadata service over UDP", f"ask('169.254.169.254', {PORT})"),
    _network("ask-private-name-server", "names from a private name server", f"ask({world.PRIVATE_NAME_SERVER!r}, 53)"),
    _network("broadcast", "everybody on the link at once", f"ask('255.255.255.255', {PORT}, socket.SO_BROADCAST)"),
    _network("multicast", "everybody who listens to a group", f"ask('239.1.2.3', {PORT})"),
    _network(
        "multicast-ipv6",
        "everybody on the link who speaks IPv6",
        f"ask('ff02::77', {PORT}, family=socket.AF_INET6, scope=socket.if_nametoindex(interface()))",
    ),
    _network(
        "ping-metadata",
        "a tunnel of echo requests to where it must not go",
        """
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as pinger:
    pinger.settimeout(1.5)
    pinger.sendto(struct.pack("!BBHHH", 8, 0, 0, 0, 1) + b"data", ("169.254.169.254", 0))
    succeeded("an echo of %d bytes" % len(pinger.recv(100)))
""",
    ),
    _network(
        "raw-socket",
        "packets of its own making",
        """
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as opened:
    succeeded("a raw socket is open: %s" % opened.fileno())
""",
    ),
    _network(
        "packet-socket",
        "frames of its own making, and to hear other people's (ARP spoofing)",
        """
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as opened:
    opened.bind((interface(), 0))
    own = opened.getsockname()[4]
    opened.send(own + own + struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, 1) + own + bytes(4) + own + bytes(4))
    succeeded("an ARP frame to itself was sent")
""",
    ),
    _network(
        "spoof-source",
        "to send from other people's addresses",
        """
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    sender.setsockopt(socket.SOL_IP, 19, 1)
    sender.bind(("192.0.2.77", 0))
    succeeded("bound to %s" % (sender.getsockname(),))
""",
    ),
    _network(
        "change-firewall",
        "to take away the rules that hold it back",
        """
for command in (["iptables", "-F"], ["iptables-legacy", "-F"], ["nft", "flush", "ruleset"]):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=3)
    except OSError as error:
        why = error
        continue
    if done.returncode == 0: succeeded(command)
    why = done.stderr
stopped(why)
""",
    ),
    _network(
        "change-route",
        "its packets to go where it wants them",
        """
address = lambda text: struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(text))
route = struct.pack("L16s16s16sHhLPh6xPLLH", 0, address("192.0.2.0"), address("0.0.0.0"), address("255.255.255.0"),
                    1, 0, 0, 0, 0, 0, 0, 0, 0)
name = ctypes.create_string_buffer(b"lo")
buffer = ctypes.create_string_buffer(route.ljust(120, b"\\0"))
struct.pack_into("P", buffer, 88, ctypes.addressof(name))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
    checked(libc.ioctl(control.fileno(), 0x890B, buffer), "SIOCADDRT")
succeeded("a route was added")
""",
    ),
    _network(
        "change-interface",
        "the network's interfaces to its liking",
        """
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
    request = struct.pack("16sh22x", b"lo", 0)
    flags = struct.unpack_from("h", fcntl.ioctl(control, 0x8913, request), 16)[0]
    fcntl.ioctl(control, 0x8914, struct.pack("16sh22x", b"lo", flags))
succeeded("the flags of lo were written with what they were")
""",
    ),
    _network(
        "network-settings",
        "to change how the sandbox's network works",
        "remount_writable('/proc/sys')\nwrite_back('/proc/sys/net/ipv4/ip_forward')",
    ),
    _network(
        "be-reached",
        "to serve somebody outside, as a foothold",
        """
with socket.create_server(("0.0.0.0", 9090)) as server:
    server.settimeout(2.5)
    print("listening", flush=True)
    try:
        connection, whence = server.accept()
        succeeded("%s came in" % (whence,))
    except socket.timeout:
        stopped("nobody came in")
""",
        onlooker=Onlooker.VISITOR,
    ),
)
