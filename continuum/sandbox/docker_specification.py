"""The container that a sandbox is, in the words of Docker's API (`POST /containers/create`). Nothing here does I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from continuum.config import Settings
from continuum.egress import REDIRECTED_HOSTS, Address
from continuum.sandbox.docker_image import WORK_DIRECTORY, SandboxImage

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


def sandbox_specification(
    settings: Settings,
    image: SandboxImage,
    command: Sequence[str],
    labels: Mapping[str, str],
    network: str,
    *,
    hosts: Sequence[str] = (),
    resolvers: Sequence[Address] = (),
) -> dict[str, Any]:
    """A container whose only process is `command`, run as root with next to no rights, talked to over its stdin.

    It ends when its stdin does, and then removes itself: whatever happens to the worker, the daemon closes it.
    network: a network's id, or `none`. hosts: names it is told the addresses of, each as `name:address`.
    resolvers: the name servers that Docker's resolver asks for it; empty for the host's own.
    """
    memory = settings.container_memory_mb * MEBIBYTE
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
            "Memory": memory,
            "MemorySwap": memory,
            "NanoCpus": round(settings.container_cpu_limit * 1e9),
            "PidsLimit": settings.container_pids_limit,
            "Ulimits": [
                {"Name": "core", "Soft": 0, "Hard": 0},
                {"Name": "nofile", "Soft": 1024, "Hard": 1024},
                # No POSIX message queues: they outlive the processes that made them.
                {"Name": "msgqueue", "Soft": 0, "Hard": 0},
            ],
            "NetworkMode": network,
            "IpcMode": "private",
            "ExtraHosts": [*(f"{host}:127.0.0.1" for host in REDIRECTED_HOSTS), *hosts],
            "Dns": [str(resolver) for resolver in resolvers],
            "LogConfig": {"Type": "none"},
            "Runtime": settings.container_runtime,
        },
    }
