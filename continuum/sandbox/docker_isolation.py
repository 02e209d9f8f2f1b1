"""What stands between a container and its host, as the Docker daemon tells it, and what an operator may do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from continuum.sandbox.docker_engine import Engine

_ROOT_OF_THE_HOST = (
    "root of a container that gets out is root of the host: set userns-remap in daemon.json, or use rootless Docker"
)
_NO_CGROUPS = (
    "the runtime runs with --ignore-cgroups: memory, CPU and processes of a sandbox are limited one process at a time, "
    "not together; run it without that where the host's cgroups allow"
)
_HARMLESS_PROBES = {
    "volumes": ("GET", "/volumes", None),
    "exec": ("POST", "/containers/continuum-no-such-container/exec", {"Cmd": ["true"]}),
    # No daemon makes it: there is no such image.
    "privileged containers": (
        "POST",
        "/containers/create",
        {"Image": "continuum-no-such-image:none", "HostConfig": {"Privileged": True}},
    ),
}
"""Requests that no worker makes. A daemon answers that it knows no such thing, a filter that it may not be asked."""
_REFUSALS = (401, 403, 405)


@dataclass(frozen=True, slots=True)
class Isolation:
    """What holds a sandbox of one runtime.

    summary: in a few words; host: what the daemon and its kernel are; advice: what could be stronger, and how.
    unlimited: what nothing limits for a sandbox as a whole, and what to do. gvisor: whether its kernel is gVisor.
    cgroups: False where nothing on the host limits a sandbox's memory, so that the runner must limit its processes.
    """

    summary: str
    host: str = ""
    unlimited: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    gvisor: bool = False
    cgroups: bool = True


def isolation_of(info: Mapping[str, Any], runtime: str) -> Isolation:
    """Judge a runtime (empty: the daemon's default) by what the daemon says of itself (`GET /info`)."""
    name = runtime or info.get("DefaultRuntime") or "runc"
    described = (info.get("Runtimes") or {}).get(name) or {}
    program = described.get("path") or described.get("runtimeType") or name
    arguments = [word.lstrip("-") for word in described.get("runtimeArgs") or []]
    security = _security(info)
    advice: list[str] = []
    unlimited = _missing_limits(info)
    cgroups, gvisor = info.get("MemoryLimit") is not False, "runsc" in program
    if gvisor:
        summary = "gVisor, a kernel of its own"
        if {"ignore-cgroups", "ignore-cgroups=true"} & set(arguments):
            cgroups, unlimited = False, [_NO_CGROUPS]
        if "network=host" in arguments:
            advice.append("the runtime runs with --network=host: scripts use the host kernel's network; take that away")
    elif "kata" in program:
        summary = "Kata, a virtual machine of its own"
    else:
        summary = f"shares the host's kernel, {', '.join(_layers(security))}"
        advice += _advice_on_shared_kernel(security)
    host = (
        f"Docker {info.get('ServerVersion')}{' (rootless)' if 'rootless' in security else ''}, "
        f"kernel {info.get('KernelVersion')}, cgroup v{info.get('CgroupVersion') or 1}"
    )
    summary += "" if cgroups else ", memory limited by process only"
    return Isolation(f"{name}: {summary}", host, tuple(unlimited), tuple(advice), gvisor, cgroups)


def _security(info: Mapping[str, Any]) -> dict[str, str]:
    """The daemon's security options by name: `name=seccomp,profile=default` becomes seccomp: default."""
    found = {}
    for option in info.get("SecurityOptions") or []:
        values = dict(part.partition("=")[::2] for part in str(option).split(","))
        found[values.get("name", str(option))] = values.get("profile", "")
    return found


def _layers(security: Mapping[str, str]) -> list[str]:
    return [
        f"seccomp {security['seccomp'] or 'on'}" if "seccomp" in security else "no seccomp",
        *(("AppArmor",) if "apparmor" in security else ()),
        *(("SELinux",) if "selinux" in security else ()),
        "user namespaces on" if security.keys() & {"userns", "rootless"} else "user namespaces off",
    ]


def _advice_on_shared_kernel(security: Mapping[str, str]) -> list[str]:
    advice = []
    if security.get("seccomp", "unconfined") == "unconfined":
        advice.append("no seccomp filter: remove seccomp-profile from daemon.json, or use a kernel with CONFIG_SECCOMP")
    if not security.keys() & {"apparmor", "selinux"}:
        advice.append("neither AppArmor nor SELinux confines containers: turn on what this distribution has")
    if not security.keys() & {"userns", "rootless"}:
        advice.append(_ROOT_OF_THE_HOST)
    return advice


def _missing_limits(info: Mapping[str, Any]) -> list[str]:
    """What the daemon says that it cannot limit, and what would make it able to."""
    cures = {
        "MemoryLimit": "no memory limit: boot with cgroup_enable=memory (rootless: delegate the controller, cgroup v2)",
        "SwapLimit": "no limit on swap: turn swap off, or boot with swapaccount=1",
        "PidsLimit": "no limit on processes: use a kernel with CONFIG_CGROUP_PIDS (rootless: delegate the controller)",
        "CpuCfsQuota": "no limit on CPU: use a kernel with CONFIG_CFS_BANDWIDTH (rootless: delegate the controller)",
    }
    return [cure for flag, cure in cures.items() if info.get(flag) is False]


@dataclass(frozen=True, slots=True)
class SocketFilter:
    """What was refused, and what was let through, of the requests that no worker makes."""

    refused: tuple[str, ...]
    passed: tuple[str, ...]

    def __str__(self) -> str:
        if not self.refused:
            return "the daemon's own"
        passed = f", and lets {' and '.join(self.passed)} through" if self.passed else ""
        return f"a filter that refuses {', '.join(self.refused)}{passed}"

    @property
    def advice(self) -> str:
        """What to do, empty when nothing."""
        if not self.passed:
            return ""
        who = "whoever takes over the worker takes over this host"
        return f"{who}: put `continuum socket-proxy` in between (docs/how-to/isolation.md)"


async def probe_socket(engine: Engine) -> SocketFilter:
    """Find out whether something filters what is asked of the daemon. Raises `EngineError`."""
    refused: list[str] = []
    passed: list[str] = []
    for what, (method, path, body) in _HARMLESS_PROBES.items():
        ask = partial(_status, method=method, path=path, body=body)
        (refused if await engine.call(ask) in _REFUSALS else passed).append(what)
    return SocketFilter(tuple(refused), tuple(passed))


def _status(api: Any, *, method: str, path: str, body: object) -> int:
    status: int = api.request(method, api._url(path), json=body, timeout=10).status_code
    return status
