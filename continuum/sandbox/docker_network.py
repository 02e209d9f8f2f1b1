"""The network of the sandboxes on a Docker host, and the setting of its policy in each sandbox."""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import trio

from continuum.egress import Address
from continuum.sandbox.docker_engine import Engine
from continuum.sandbox.docker_image import SandboxImage
from continuum.sandbox.docker_owner import Owner
from continuum.sandbox.docker_stream import EngineRefused
from continuum.sandbox.network import POLICY_VERSION, EgressPolicy, PolicyError
from continuum.sandbox.network_host import ADDRESS_FILES, own_addresses, parse_addresses

NETWORK = "continuum"
NETWORK_LABEL = "continuum.network"
POLICY_DEADLINE = 20.0
"""Seconds for a helper container to set a sandbox's rules, or to list the host's addresses; it takes a fifth of one."""

NETWORK_OPTIONS = {"com.docker.network.bridge.enable_icc": "false"}
_HELPER_CAPABILITIES = ["NET_ADMIN", "NET_RAW"]
_HELPER_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KERNEL_NETWORKED = {"runc", "io.containerd.runc.v2", "crun", "youki", "nvidia-container-runtime"}
"""Runtimes whose containers use the host kernel's network, where iptables rules bind them. gVisor and Kata bring a
network stack or a kernel of their own: the rules would be there, look right and filter nothing."""


@dataclass(frozen=True, slots=True)
class SandboxNetwork:
    """A bridge network whose members cannot reach each other, and what its members may not reach."""

    id: str
    policy: EgressPolicy


def enforceable(info: Mapping[str, Any], runtime: str) -> bool:
    """Whether iptables rules bind the containers of a runtime (empty: the daemon's default).

    info: what the daemon says of itself (`GET /info`).
    """
    name = runtime or info.get("DefaultRuntime") or "runc"
    program = (info.get("Runtimes") or {}).get(name, {}).get("path") or name
    return program.rpartition("/")[2] in _KERNEL_NETWORKED


async def ensure_network(engine: Engine) -> SandboxNetwork:
    """The network, found or made. Raises `PolicyError` when this host cannot have it, and `EngineError`."""
    network = await _find(engine)
    if network is None:
        try:
            await engine.call(
                lambda api: api.create_network(
                    NETWORK,
                    driver="bridge",
                    options=NETWORK_OPTIONS,
                    check_duplicate=True,
                    labels={NETWORK_LABEL: str(POLICY_VERSION)},
                )
            )
        except EngineRefused as error:
            if "already exists" not in str(error):
                raise PolicyError(f"the network {NETWORK} cannot be made: {error}") from error
        network = await _find(engine)
    if network is None:
        raise PolicyError(f"the network {NETWORK} vanished as soon as it was made")
    subnets = [config["Subnet"] for config in network["IPAM"].get("Config") or [] if config.get("Subnet")]
    return SandboxNetwork(network["Id"], EgressPolicy(tuple(ipaddress.ip_network(subnet) for subnet in subnets)))


async def _find(engine: Engine) -> dict[str, Any] | None:
    """The network that all workers of this host use: the oldest, should several have been made at once."""
    listed: list[dict[str, Any]] = await engine.call(lambda api: api.networks(names=[NETWORK]))
    # The daemon takes a name for a part of one.
    networks = [network for network in listed if network["Name"] == NETWORK]
    if not networks:
        return None
    usable = [network for network in networks if isolates_members(network)]
    if not usable:
        raise PolicyError(
            f"there is a network {NETWORK} that Continuum did not make, or whose options were changed: "
            f"remove it (docker network rm {NETWORK})"
        )
    return min(usable, key=lambda network: (network["Created"], network["Id"]))


def isolates_members(network: dict[str, Any]) -> bool:
    """Whether a network, as the daemon describes it, was made by `ensure_network` and is what that made."""
    options = network.get("Options") or {}
    ours = NETWORK_LABEL in (network.get("Labels") or {})
    return ours and network["Driver"] == "bridge" and NETWORK_OPTIONS.items() <= options.items()


async def find_host_addresses(engine: Engine, owner: Owner, image: str) -> tuple[Address, ...]:
    """The addresses of the machine that the daemon runs on, and of this process where that is another.

    Raises `PolicyError` when they cannot be had, and `EngineError`.
    """
    specification = addresses_specification(owner.labels("network-policy"), image)
    try:
        printed = await engine.run(
            f"continuum-addresses-{secrets.token_hex(6)}", specification, deadline=POLICY_DEADLINE
        )
    except EngineRefused as error:
        raise PolicyError(
            f"a container on the host's network, to list the host's addresses, cannot run: {error}"
        ) from error
    found = parse_addresses(printed.output)
    if not found:
        raise PolicyError(f"the host's addresses could not be read: {printed.errors or 'nothing was printed'}")
    return tuple(dict.fromkeys((*found, *own_addresses())))


async def close_host(
    engine: Engine, owner: Owner, network: SandboxNetwork, image: SandboxImage, base: str
) -> SandboxNetwork:
    """A network whose policy closes the host's addresses, too, for containers of an image that can have such a policy.

    base: what the image was made of. Raises `PolicyError` and `EngineError`.
    """
    if not image.has_iptables:
        raise PolicyError(f"{base} lacks iptables, which could not be installed")
    host = await find_host_addresses(engine, owner, image.tag)
    return replace(network, policy=replace(network.policy, host=host))


async def restrict(
    engine: Engine, owner: Owner, image: str, sandbox: str, policy: EgressPolicy, running: trio.Event | None = None
) -> None:
    """Set a policy in the network namespace of a sandbox, and read it back. The helper is made while the sandbox starts.

    running: set once the sandbox has been started; None where it has. Raises `PolicyError` when the policy is not in force,
    `EngineError` when the sandbox is gone or the daemon fails.
    """
    specification = policy_specification(owner.labels("network-policy"), image, sandbox, policy.command())
    try:
        helper = f"{sandbox}-{secrets.token_hex(3)}"
        printed = await engine.run(helper, specification, deadline=POLICY_DEADLINE, after=running)
    except EngineRefused as error:
        if running is not None:
            await running.wait()
        if (await engine.inspect(sandbox))["State"]["Running"]:
            raise PolicyError(f"the container that sets the rules cannot run: {error}") from error
        raise
    try:
        policy.verify(printed.output)
    except PolicyError as error:
        raise PolicyError(f"{error}; {printed.errors}" if printed.errors else str(error)) from None


def policy_specification(labels: Mapping[str, str], image: str, sandbox: str, command: Sequence[str]) -> dict[str, Any]:
    """The container, in the words of Docker's API, that runs `command` in the network namespace of a sandbox."""
    specification = _helper(labels, image, command, network=f"container:{sandbox}")
    specification["HostConfig"]["CapAdd"] = _HELPER_CAPABILITIES
    return specification


def addresses_specification(labels: Mapping[str, str], image: str) -> dict[str, Any]:
    """The container, in the words of Docker's API, that prints the addresses of the daemon's machine."""
    command = ["/bin/sh", "-c", f"cat {' '.join(ADDRESS_FILES)} || true"]
    specification = _helper(labels, image, command, network="host")
    # A daemon that maps users lets only containers of the host's own users into the host's network.
    specification["HostConfig"]["UsernsMode"] = "host"
    return specification


def _helper(labels: Mapping[str, str], image: str, command: Sequence[str], *, network: str) -> dict[str, Any]:
    """A container that runs a command as root with no rights at all in somebody else's network namespace."""
    return {
        "Image": image,
        "User": "0:0",
        "Entrypoint": list(command),
        "Cmd": [],
        "Env": [_HELPER_PATH],
        "WorkingDir": "/",
        "Labels": dict(labels),
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "NetworkMode": network,
            "AutoRemove": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "ReadonlyRootfs": True,
            "Tmpfs": {"/tmp": "size=1m", "/run": "size=1m"},  # noqa: S108
            "LogConfig": {"Type": "none"},
        },
    }
