"""A throw-away single-node CockroachDB in memory, where a binary is at hand."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

from tests.support.postgres import free_port

DEADLINE = 60.0


class CockroachServer:
    """One node, insecure, on loopback; its data is in memory."""

    def __init__(self, binary: str) -> None:
        self.port = free_port()
        self._log = tempfile.NamedTemporaryFile(prefix="ctm-crdb-")  # noqa: SIM115 - closed by stop
        self._process = subprocess.Popen(
            [
                binary,
                "start-single-node",
                "--insecure",
                f"--listen-addr=127.0.0.1:{self.port}",
                "--http-addr=127.0.0.1:0",
                "--store=type=mem,size=1GiB",
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            cwd=tempfile.gettempdir(),
        )

    def url_of(self, database: str) -> str:
        return f"postgresql://root@127.0.0.1:{self.port}/{database}"

    def wait_until_up(self) -> None:
        """Return when it answers; fail with its log when it does not within the deadline."""
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                with psycopg.connect(self.url_of("defaultdb"), connect_timeout=2):
                    return
            except psycopg.OperationalError:
                log = Path(self._log.name).read_text(errors="replace")[-2000:]
                assert self._process.poll() is None, log
                assert time.monotonic() < deadline, log
                time.sleep(0.2)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()
