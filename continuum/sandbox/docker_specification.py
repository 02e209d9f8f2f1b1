"""The container that a sandbox is, in the words of Docker's API (`POST /containers/create`). Nothing here does I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from continuum.config import Settings
from continuum.sandbox.channel import RunnerConfig
from continuum.sandbox.docker_image import WORK_DIRECTORY, SandboxImage
from continuum.sandbox.limits import OPEN_FILES, Limits

MEBIBYTE = 1024 * 1024

CAPABILITIES = ("SETUID", "SETGID", "KILL", "DAC_OVERRIDE")
"""What the runner needs: to become the sandbox user, to kill what that user left and to empty what it wrote."""

REDIRECTED_HOSTS = ("host.docker.internal", "gateway.docker.internal", "metadata.google.internal")
"""Names that elsewhere lead out of the sandbox to its host; here they lead to the sandbox itself."""

TEMPORARY_DIRECTORIES = {
    # A script may install a package with compiled parts where it works, and import it.
    WORK_DIRECTORY: "exec",
    "/tmp": "noexec",  # noqa: S108
    "/dev/shm": "noexec",  # noqa: S108
}
"""The places that scripts may write to; the runner empties them after each."""

FILES_PER_MEBIBYTE = 256
"""Files a temporary directory may hold: more than scripts need, and few enough that empty ones exhaust no memory."""


PREFERRED_VICTIM = 500
"""When the host as a whole runs out of memory, it kills in a sandbox before it kills a database or the worker. A script's
own processes stand at 1000, and cannot go below what is set here."""


def sandbox_limits(settings: Settings) -> Limits:
    """What a script in a container may use."""
    return Limits.of(settings, files=settings.container_disk_mb * FILES_PER_MEBIBYTE)


def runner_config(settings: Settings, uid: int) -> RunnerConfig:
    """How the runner in a container is to treat scripts; what they may use is limited from outside."""
    return RunnerConfig(
        uid=uid,
        gid=uid,
        home=WORK_DIRECTORY,
        writable=(*TEMPORARY_DIRECTORIES, "/dev/mqueue"),
        cpu_seconds=sandbox_limits(settings).cpu_seconds,
    )


def sandbox_specification(
    settings: Settings, image: SandboxImage, command: Sequence[str], labels: Mapping[str, str], network: str
) -> dict[str, Any]:
    """A container whose only process is `command`, run as root with next to no rights, talked to over its stdin.

    It ends when its stdin does, and then removes itself: whatever happens to the worker, the daemon closes it.
    network: a network's id, or `none`.
    """
    limits = sandbox_limits(settings)
    memory = limits.memory_mb * MEBIBYTE
    disk = f"nosuid,nodev,size={limits.disk_mb}m,nr_inodes={limits.files}"
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
            "PidsLimit": limits.processes,
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
            "ExtraHosts": [f"{host}:127.0.0.1" for host in REDIRECTED_HOSTS],
            "LogConfig": {"Type": "none"},
            "Runtime": settings.container_runtime,
        },
    }
