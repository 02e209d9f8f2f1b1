"""What is said of a Docker daemon's isolation, from what it says of itself."""

from __future__ import annotations

from typing import Any

import pytest

from continuum.sandbox.docker_isolation import SocketFilter, isolation_of

PLAIN: dict[str, Any] = {
    "ServerVersion": "29.0.1",
    "KernelVersion": "6.12.0",
    "CgroupVersion": "2",
    "DefaultRuntime": "runc",
    "Runtimes": {
        "runc": {"path": "runc"},
        "runsc": {"path": "/usr/bin/runsc", "runtimeArgs": ["--platform=ptrace", "--network=none"]},
        "loose": {"path": "/opt/runsc", "runtimeArgs": ["--ignore-cgroups", "-network=host"]},
        "kata": {"runtimeType": "io.containerd.kata.v2"},
        "shim": {"runtimeType": "io.containerd.runsc.v1"},
    },
    "SecurityOptions": ["name=apparmor", "name=seccomp,profile=builtin", "name=cgroupns"],
    "MemoryLimit": True,
    "SwapLimit": True,
    "PidsLimit": True,
    "CpuCfsQuota": True,
}


@pytest.mark.parametrize(
    ("runtime", "summary"),
    [
        ("", "runc: shares the host's kernel, seccomp builtin, AppArmor, user namespaces off"),
        ("crun", "crun: shares the host's kernel, seccomp builtin, AppArmor, user namespaces off"),
        ("runsc", "runsc: gVisor, a kernel of its own"),
        ("shim", "shim: gVisor, a kernel of its own"),
        ("loose", "loose: gVisor, a kernel of its own, memory limited by process only"),
        ("kata", "kata: Kata, a virtual machine of its own"),
    ],
)
def test_every_runtime_is_called_what_it_is(runtime: str, summary: str) -> None:
    assert isolation_of(PLAIN, runtime).summary == summary


def test_the_host_is_named() -> None:
    assert isolation_of(PLAIN, "").host == "Docker 29.0.1, kernel 6.12.0, cgroup v2"
    rootless = isolation_of(PLAIN | {"SecurityOptions": ["name=rootless", "name=seccomp,profile=default"]}, "")
    assert rootless.host.startswith("Docker 29.0.1 (rootless), ")
    assert rootless.summary.endswith("user namespaces on")
    assert isolation_of({}, "").host, "and nothing that a daemon leaves out is missed"


@pytest.mark.parametrize(
    ("options", "advised"),
    [
        (["name=seccomp,profile=default", "name=apparmor", "name=userns"], []),
        (["name=seccomp,profile=default", "name=selinux", "name=rootless"], []),
        (["name=seccomp,profile=default", "name=apparmor"], ["userns-remap"]),
        (["name=seccomp,profile=default", "name=userns"], ["AppArmor"]),
        (["name=seccomp,profile=unconfined", "name=apparmor", "name=userns"], ["seccomp"]),
        ([], ["seccomp", "AppArmor", "userns-remap"]),
    ],
)
def test_each_layer_that_is_missing_is_advised(options: list[str], advised: list[str]) -> None:
    advice = isolation_of(PLAIN | {"SecurityOptions": options}, "").advice
    assert len(advice) == len(advised)
    assert all(word in line for word, line in zip(advised, advice, strict=True))
    assert isolation_of(PLAIN | {"SecurityOptions": options}, "runsc").advice == (), "gVisor does not lean on them"


@pytest.mark.parametrize(
    ("flag", "word"),
    [("MemoryLimit", "memory"), ("SwapLimit", "swap"), ("PidsLimit", "processes"), ("CpuCfsQuota", "CPU")],
)
def test_each_limit_that_the_host_cannot_set_is_told(flag: str, word: str) -> None:
    (told,) = isolation_of(PLAIN | {flag: False}, "").unlimited
    assert word in told
    assert isolation_of(PLAIN | {flag: False}, "").cgroups is (flag != "MemoryLimit")
    assert isolation_of(PLAIN, "").unlimited == ()


def test_gvisor_without_the_hosts_cgroups_or_with_its_network_is_told() -> None:
    loose, tight = isolation_of(PLAIN, "loose"), isolation_of(PLAIN, "runsc")
    assert (loose.cgroups, tight.cgroups) == (False, True)
    assert "--ignore-cgroups" in loose.unlimited[0]
    assert "--network=host" in loose.advice[0]


def test_what_stands_before_the_socket_is_told_with_what_to_do() -> None:
    assert str(SocketFilter((), ("volumes", "exec"))) == "the daemon's own"
    by_path = SocketFilter(("volumes", "exec"), ("privileged containers",))
    assert str(by_path) == "a filter that refuses volumes, exec, and lets privileged containers through"
    assert "continuum socket-proxy" in by_path.advice
    strict = SocketFilter(("volumes", "exec", "privileged containers"), ())
    assert (str(strict), strict.advice) == ("a filter that refuses volumes, exec, privileged containers", "")
