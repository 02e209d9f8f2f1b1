"""The container that a sandbox is, in the words of Docker's API (`POST /containers/create`). Nothing here does I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from continuum.config import Settings
from continuum.egress import REDIRECTED_HOSTS, Address
from continuum.sandbox.channel import RunnerConfig
from continuum.sandbox.docker_image import SANDBOX_UID, WORK_DIRECTORY, SandboxImage
from continuum.sandbox.docker_isolation import Isolation
from continuum.sandbox.limits import OPEN_FILES, Limits
from continuum.sandbox.requirements_build import PLACE

MEBIBYTE = 1024 * 1024

CAPABILITIES = ("SETUID", "SETGID", "KILL", "DAC_OVERRIDE")
"""What the runner needs: to become the sandbox user, to kill what that user left and to empty what it wrote."""

TEMPORARY_DIRECTORIES = {
    # A script may install a package with compiled parts where it works, and import it.
    WORK_DIRECTORY: "exec",
    "/tmp": "noexec",  # noqa: S108
    "/dev/shm": "noexec",  # noqa: S108
}
"""The places that scripts may write to; the runner empties them after each."""

FILES_PER_MEBIBYTE = 256
"""Files a temporary directory may hold: more than scripts need, and few enough that empty ones exhaust no memory."""


HOST_PROCESSES_OF_GVISOR = (1024, 8)
"""What gVisor may have on the host by itself, and for each process of a script. Seen were 26 and 5, and many times that where
processes came and went quickly. It dies at this limit, so scripts are held to CONTAINER_PIDS_LIMIT inside, by its own kernel."""

PREFERRED_VICTIM = 500
"""When the host as a whole runs out of memory, it kills in a sandbox before it kills a database or the worker. A script's
own processes stand at 1000, and cannot go below what is set here."""


def sandbox_limits(settings: Settings, isolation: Isolation) -> Limits:
    """What a script in a container may use."""
    # gVisor limits the bytes in a place and not the files: they count as memory.
    files = None if isolation.gvisor else settings.container_disk_mb * FILES_PER_MEBIBYTE
    return Limits.of(settings, files=files)


def runner_config(settings: Settings, isolation: Isolation) -> RunnerConfig:
    """How the runner in a container is to treat scripts. What they may use is limited from outside, where that can be."""
    limits = {}
    if isolation.gvisor:
        limits["RLIMIT_NPROC"] = settings.container_pids_limit
    if not isolation.cgroups:  # of what counts memory, gVisor knows the address space alone
        limits["RLIMIT_AS" if isolation.gvisor else "RLIMIT_DATA"] = settings.container_memory_mb * MEBIBYTE
    return RunnerConfig(
        uid=SANDBOX_UID,
        gid=SANDBOX_UID,
        home=WORK_DIRECTORY,
        writable=(*TEMPORARY_DIRECTORIES, "/dev/mqueue"),
        limits=limits,
        cpu_seconds=sandbox_limits(settings, isolation).cpu_seconds,
    )


def sandbox_specification(
    settings: Settings,
    image: SandboxImage,
    command: Sequence[str],
    labels: Mapping[str, str],
    network: str,
    isolation: Isolation,
    *,
    hosts: Sequence[str] = (),
    resolvers: Sequence[Address] = (),
    layer: str | None = None,
) -> dict[str, Any]:
    """A container whose only process is `command`, run as root with next to no rights, talked to over its stdin.

    It ends when its stdin does, and then removes itself: whatever happens to the worker, the daemon closes it.
    network: a network's id, or `none`. hosts: names it is told the addresses of, each as `name:address`.
    resolvers: the name servers that Docker's resolver asks for it; empty for the host's own.
    layer: the volume that scripts may read at PLACE.
    """
    limits = sandbox_limits(settings, isolation)
    memory = limits.memory_mb * MEBIBYTE
    processes = settings.container_pids_limit
    if isolation.gvisor:
        own, each = HOST_PROCESSES_OF_GVISOR
        processes = own + each * processes
    disk = (
        f"nosuid,nodev,size={settings.container_disk_mb}m,nr_inodes={settings.container_disk_mb * FILES_PER_MEBIBYTE}"
    )
    return {
        "Image": image.tag,
        "Hostname": "sandbox",
        "User": "0:0",
        "Entrypoint": list(command),
        "Cmd": [],
        "WorkingDir": "/",
        "Labels": dict(labels),
        "Healthcheck": {"Test": ["NONE"]},
        # A daemon that shuts down would otherwise wait ten seconds for a process 1 that no other signal ends.
        "StopSignal": "SIGKILL",
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "HostConfig": {
            "AutoRemove": True,
            "CapDrop": ["ALL"],
            "CapAdd": list(CAPABILITIES),
            "SecurityOpt": ["no-new-privileges"],
            "ReadonlyRootfs": True,
            "Tmpfs": {
                # A volume that the image declares would be a writable place that nobody empties.
                **dict.fromkeys(image.volumes, "ro,noexec,nosuid,nodev,size=4k"),
                **{place: f"{executable},mode=1777,{disk}" for place, executable in TEMPORARY_DIRECTORIES.items()},
            },
            "Mounts": [_mounted(layer)] if layer else [],
            "Memory": memory,
            "MemorySwap": memory,
            "NanoCpus": round(settings.container_cpu_limit * 1e9),
            "PidsLimit": processes,
            "OomScoreAdj": PREFERRED_VICTIM,
            "Ulimits": [
                {"Name": "core", "Soft": 1, "Hard": 1},  # as the runner has it
                {"Name": "nofile", "Soft": OPEN_FILES, "Hard": OPEN_FILES},
                # No POSIX message queues, which are files in /dev/mqueue as well: they outlive the processes that made them.
                {"Name": "msgqueue", "Soft": 0, "Hard": 0},
            ],
            "NetworkMode": network,
            "IpcMode": "private",
            # The runner reads there what the kernel counts of this container, and a script learns nothing of the host's.
            "CgroupnsMode": "private",
            "ExtraHosts": [*(f"{host}:127.0.0.1" for host in REDIRECTED_HOSTS), *hosts],
            "Dns": [str(resolver) for resolver in resolvers],
            "LogConfig": {"Type": "none"},
            "Runtime": settings.container_runtime,
        },
    }


def _mounted(layer: str) -> dict[str, Any]:
    return {
        "Type": "volume",
        "Source": layer,
        "Target": PLACE,
        "ReadOnly": True,
        "VolumeOptions": {"NoCopy": True},
    }
