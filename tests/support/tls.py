"""Servers that speak TLS and know their clients by certificate, with certificates made for the test."""

from __future__ import annotations

import os
import pwd
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psycopg
import trio
from psycopg.conninfo import make_conninfo

from tests.support.postgres import SYSTEM_USER, PostgresServer, create_server, free_port, remove_server

HOST = "127.0.0.1"
"""The only name in the servers' certificates."""
USER = "continuum"
DEADLINE = 60.0


@dataclass(frozen=True)
class Identity:
    """A certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority of the test's own; `certificate` is what clients trust."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        self.certificate, self._key = folder / "ca.crt", folder / "ca.key"
        _run(
            "openssl", "req", "-x509", *_NEW_KEY, "-keyout", self._key, "-out", self.certificate,
            "-days", "2", "-subj", f"/CN={folder.name}",
        )  # fmt: skip

    def issue(self, name: str, *alternative: str) -> Identity:
        """Make a certificate for a common name, and for hosts such as `IP:127.0.0.1`."""
        request, extensions = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        identity = Identity(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        extensions.write_text(f"subjectAltName = {','.join(alternative)}\n" if alternative else "")
        _run("openssl", "req", "-new", *_NEW_KEY, "-keyout", identity.key, "-out", request, "-subj", f"/CN={name}")
        _run(
            "openssl", "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial",
            "-days", "2", "-extfile", extensions, "-out", identity.certificate,
        )  # fmt: skip
        identity.key.chmod(0o600)
        return identity


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class SecureServer:
    """A server which lets nobody in without TLS and a client certificate: where it is, and what its clients need."""

    kind: str
    port: int
    authority: Path
    client: Identity

    @property
    def settings(self) -> dict[str, object]:
        """The settings of a worker that does everything right, without a password."""
        return {
            "db_host": (HOST,),
            "db_port": (self.port,),
            "db_user": USER,
            "db_name": USER,
            "db_sslmode": "verify-full",
            "db_sslrootcert": self.authority,
            "db_sslcert": self.client.certificate,
            "db_sslkey": self.client.key,
        }


async def start_secure_postgres(folder: Path) -> tuple[PostgresServer, SecureServer]:
    """A PostgreSQL with `cert` as its only way in; `remove_server` the first."""
    authority = Authority(folder / "authority")
    identity = authority.issue("server", f"IP:{HOST}")
    server = await create_server("fsync = off")
    try:
        for name, source in (("server.crt", identity.certificate), ("server.key", identity.key)):
            _give_to_server(server.data / name, source.read_bytes())
        _give_to_server(server.data / "root.crt", authority.certificate.read_bytes())
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET ssl_ca_file = 'root.crt'")
            connection.execute("ALTER SYSTEM SET ssl = on")
        (server.data / "pg_hba.conf").write_text(f"hostssl all all {HOST}/32 cert\n")
        await server.stop()
        await server.start()
    except BaseException:
        with trio.CancelScope(shield=True):
            await remove_server(server)
        raise
    return server, SecureServer("postgres", server.port, authority.certificate, authority.issue(USER))


def _give_to_server(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    if os.geteuid() == 0:
        user = pwd.getpwnam(SYSTEM_USER)
        os.chown(path, user.pw_uid, user.pw_gid)


class SecureCockroach:
    """One node in memory, with certificates from its own `cert` command."""

    def __init__(self, binary: str, folder: Path) -> None:
        certificates, key = folder / "certs", folder / "ca.key"
        folders = (f"--certs-dir={certificates}", f"--ca-key={key}")
        _run(binary, "cert", "create-ca", *folders)
        _run(binary, "cert", "create-node", HOST, *folders)
        for user in ("root", USER):
            _run(binary, "cert", "create-client", user, *folders)
        self._log = tempfile.NamedTemporaryFile(prefix="ctm-crdb-")  # noqa: SIM115 - closed by stop
        port = free_port()
        self._process = subprocess.Popen(
            [
                binary,
                "start-single-node",
                f"--certs-dir={certificates}",
                f"--listen-addr={HOST}:{port}",
                f"--http-addr={HOST}:0",
                "--store=type=mem,size=1GiB",
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            cwd=folder,
        )
        root = Identity(certificates / "client.root.crt", certificates / "client.root.key")
        client = Identity(certificates / f"client.{USER}.crt", certificates / f"client.{USER}.key")
        self.server = SecureServer("cockroach", port, certificates / "ca.crt", client)
        self._root = make_conninfo(
            host=HOST, port=port, user="root", dbname="defaultdb", connect_timeout=2, sslmode="verify-full",
            sslrootcert=str(self.server.authority), sslcert=str(root.certificate), sslkey=str(root.key),
        )  # fmt: skip

    def wait_until_up(self) -> None:
        """Return when the worker's user and database are there, and changefeeds allowed; fail with the node's log."""
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                with psycopg.connect(self._root, autocommit=True) as connection:
                    connection.execute("SET CLUSTER SETTING kv.rangefeed.enabled = true")
                    connection.execute(f"CREATE USER {USER}".encode())
                    connection.execute(f"CREATE DATABASE {USER} OWNER {USER}".encode())
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


def _run(*command: str | Path) -> None:
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=DEADLINE)
    assert result.returncode == 0, f"{command}: {result.stderr}"
