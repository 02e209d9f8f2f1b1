"""A Docker daemon of the test's own, to kill and restart; never the one that others share."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from tests.conftest import require
from tests.support import docker as lab
from tests.support.places import new_folder


class OwnDaemon:
    """A second dockerd with its own state and, so that it touches no bridge of the host, its own network namespace."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.url = f"unix://{folder}/docker.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        folder = self._folder
        # Where nobody collects the containerd of a killed dockerd, the next one would wait for it.
        (folder / "exec/containerd/containerd.pid").unlink(missing_ok=True)
        with (folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["unshare", "--net", "dockerd", "--host", self.url, "--data-root", folder / "data",
                 "--exec-root", folder / "exec", "--pidfile", folder / "pid", "--bridge", "none",
                 "--iptables=false", "--ip6tables=false"],
                stdout=log, stderr=log,
            )  # fmt: skip
        trio.run(lab.eventually, self._answers, 20.0)

    def _answers(self) -> bool:
        return self.docker("version").returncode == 0

    def docker(self, *arguments: str, **options: object) -> subprocess.CompletedProcess[bytes]:
        command = ["docker", "--host", self.url, *arguments]
        return subprocess.run(command, capture_output=True, **options)  # type: ignore[call-overload, no-any-return]

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(20)
            self._process = None

    def clean_up(self) -> None:
        """Leave neither process, mount nor file behind, whatever state it is in."""
        if self._process is None:
            self.start()  # what outlived a killed daemon ends with the next
        self.stop()
        subprocess.run(["umount", self._folder / "data"], capture_output=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def copy_image(self, image: str) -> None:
        """Give it what sandboxes need of an image of the shared daemon."""
        pack = [
            "tar",
            "-C",
            "/",
            "-c",
            "--exclude=usr/share",
            "bin",
            "sbin",
            "lib",
            "lib64",
            "etc",
            "usr",
            "tmp",
            "run",
        ]
        # Not through a log, which takes longer than all the rest.
        read = ["docker", "run", "--rm", "--network", "none", "--log-driver", "none", image, *pack]
        with subprocess.Popen(read, stdout=subprocess.PIPE) as reading:
            assert self.docker("import", "-", image, stdin=reading.stdout).returncode == 0


@contextmanager
def own_daemon() -> Iterator[OwnDaemon]:
    """A running one with the image that tests use; every container must be gone at the end."""
    lab.require_docker()
    missing = [program for program in ("dockerd", "docker", "unshare") if shutil.which(program) is None]
    require("dockerd", os.geteuid() == 0 and not missing, f"needs root and {missing or 'nothing else'}")
    folder = new_folder("ctm-dockerd-")
    own = OwnDaemon(folder)
    try:
        own.start()
        own.copy_image(lab.IMAGE)
        yield own
        # A daemon that is killed while it writes down a container's end may list that one for ever, and knows nothing of it.
        listed = own.docker("ps", "--all", "--quiet").stdout.decode().split()
        left = [container for container in listed if own.docker("inspect", container).returncode == 0]
        assert not left, "\n".join([*left, (folder / "log").read_text(errors="replace")[-5_000:]])
    finally:
        own.clean_up()
