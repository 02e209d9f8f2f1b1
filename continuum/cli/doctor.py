"""`continuum doctor`: each thing a worker needs, tried for real, with what to do about what fails."""

from __future__ import annotations

import datetime as dt
import json
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from functools import partial

import httpx
import trio
import typer

from continuum.cli.common import names_no_database
from continuum.cli.errors import DATABASE, NO_DATABASE, NOT_CONFIGURED, OK, SANDBOX, USAGE
from continuum.cli.output import one_line
from continuum.config import ENV_FILE, NAMED_FILE, ConfigurationError, Settings
from continuum.db import open_database
from continuum.db.advice import advice_on
from continuum.db.errors import DatabaseError, DatabaseUnavailable
from continuum.db.protocol import Database
from continuum.model import Ending, RunRequest
from continuum.nursery.screening import open_screening
from continuum.nursery.state import version
from continuum.sandbox import WEAKER, choose_backend
from continuum.sandbox.docker import DockerBackend
from continuum.sandbox.protocol import BackendUnavailable, SandboxError
from continuum.status.errors import StatusServerError
from continuum.status.server import listen_on

DEADLINE = 120.0
"""Seconds for one check; pulling an image may be part of it."""
LATELY = dt.timedelta(hours=1)
ANSWER = 2.0
"""Seconds for who listens on our port to say whether it is a worker."""
LOOPBACK = {"127.0.0.1", "::1", "localhost"}
ANY_HOST = {"0.0.0.0", "::", "*"}  # noqa: S104 - compared, not bound

_CODES = {"database": DATABASE, "schema": DATABASE, "queue": DATABASE, "screening": USAGE, "status server": USAGE}


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was looked at, whether it is well, and what was seen or is to be done.

    advice: what works as it is and could be stronger, each with what to do.
    """

    what: str
    well: bool
    detail: str
    advice: tuple[str, ...] = ()


async def examine(settings: Settings, as_json: bool) -> int:
    """Run every check, print the findings as they come, and return the exit code that fits the first that is not well."""
    checks: list[tuple[str, Callable[[Settings], Awaitable[list[Finding]]]]] = [
        ("configuration", _examine_configuration),
        ("database", _examine_database),
        ("sandbox", _examine_sandbox),
        ("status server", _examine_status_server),
    ]
    if settings.code_policy != "off":
        checks.append(("screening", _examine_screening))
    findings = []
    for what, check in checks:
        found = await _within(DEADLINE, what, partial(check, settings))
        findings += found
        if not as_json:
            _print(found)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings]))
    for finding in findings:
        if not finding.well:
            return _CODES.get(finding.what, SANDBOX)
    return OK


def _print(findings: list[Finding]) -> None:
    for finding in findings:
        typer.echo(f"{'ok  ' if finding.well else 'FAIL'}  {finding.what}: {finding.detail}")
        for advice in finding.advice:
            typer.echo(f"      advice: {advice}")


async def _within(seconds: float, what: str, check: Callable[[], Awaitable[list[Finding]]]) -> list[Finding]:
    with trio.move_on_after(seconds):
        return await check()
    return [Finding(what, False, f"no answer within {seconds:g} s")]


async def _examine_configuration(settings: Settings) -> list[Finding]:
    await trio.lowlevel.checkpoint()
    sources = ["the environment", *([found] if (found := _env_file()) else [])]
    detail = f"continuum {version()} on Python {sys.version.split()[0]}, settings from {' and '.join(sources)}"
    nothing = names_no_database(settings) and settings.db_dialect != "embedded"
    return [Finding("configuration", True, detail, (NOT_CONFIGURED,) if nothing else ())]


def _env_file() -> str:
    """The file that settings were read from; empty when there was none."""
    named = os.environ.get(NAMED_FILE)
    return named or (ENV_FILE if os.path.isfile(ENV_FILE) else "")


async def _examine_database(settings: Settings) -> list[Finding]:
    findings = []
    try:
        async with open_database(settings, application="continuum-doctor") as database:
            began = trio.current_time()
            await database.ping()
            first = trio.current_time()
            await database.ping()
            second = trio.current_time() - first
            findings.append(
                Finding(
                    "database",
                    True,
                    f"{database.dialect} answers in {second * 1000:.1f} ms (connected in {(first - began) * 1000:.0f} ms)",
                )
            )
            await database.check_schema()
            findings.append(Finding("schema", True, "present and current"))
            findings.append(await _examine_queue(database))
    except DatabaseError as error:
        unclear = isinstance(error, DatabaseUnavailable) and not advice_on(str(error))
        advice = f"; {NO_DATABASE}" if unclear else ""
        findings.append(Finding("schema" if findings else "database", False, f"{error}{advice}"))
    return findings


async def _examine_queue(database: Database) -> Finding:
    counts, workers = await database.statistics(), await database.workers()
    alive = [worker for worker in workers if worker.alive]
    waiting = counts.pending + counts.scheduled
    detail = (
        f"{waiting} tasks wait, {counts.running} run; {len(alive)} workers alive, "
        f"{sum(worker.running for worker in alive)} of their {sum(worker.slots for worker in alive)} slots in use"
    )
    advice = []
    if counts.pending and not alive:
        advice.append("nobody runs what waits: start a worker with `continuum worker`")
    lately = await database.failures(dt.datetime.now(dt.UTC) - LATELY)
    if failed := sum(group.count for group in lately):
        advice.append(
            f"{failed} tasks failed within the last hour, most of them by: {one_line(lately[0].error, 80)}; "
            "`continuum tasks --status failed --since 1h` lists them"
        )
    return Finding("queue", True, detail, tuple(advice))


async def _examine_status_server(settings: Settings) -> list[Finding]:
    """Whether a worker started now could listen. Where one does already, that is as good."""
    where = f"API_HOST={settings.api_host} API_PORT={settings.api_port}"
    advice: tuple[str, ...] = ()
    if settings.api_token is None and settings.api_host not in LOOPBACK:
        advice = ("other hosts may see figures and names, and nobody may change anything: set API_TOKEN to sign in",)
    try:
        for listening in await listen_on(settings.api_host, settings.api_port):
            listening.close()
    except StatusServerError as error:
        if await _is_worker(settings):
            return [Finding("status server", True, f"{where} is a worker's that runs already", advice)]
        return [Finding("status server", False, str(error))]
    return [Finding("status server", True, f"{where} is free for a worker", advice)]


async def _is_worker(settings: Settings) -> bool:
    host = "127.0.0.1" if settings.api_host in ANY_HOST else settings.api_host
    try:
        async with httpx.AsyncClient(timeout=ANSWER) as client:
            answer = await client.get(f"http://{f'[{host}]' if ':' in host else host}:{settings.api_port}/status")
            return "tasks_processed" in answer.json()
    except (httpx.HTTPError, ValueError):
        return False


async def _examine_screening(settings: Settings) -> list[Finding]:
    try:
        await open_screening(settings)
    except ConfigurationError as error:
        return [Finding("screening", False, str(error))]
    counts = f"severity {settings.code_policy_severity} and confidence {settings.code_policy_confidence} or more"
    return [Finding("screening", True, f"CODE_POLICY={settings.code_policy}: bandit works, findings of {counts} count")]


async def _examine_sandbox(settings: Settings) -> list[Finding]:
    findings = []
    try:
        backend = await choose_backend(settings, f"doctor-{trio.current_time():.0f}")
        docker = backend if isinstance(backend, DockerBackend) else None
        try:
            await backend.prepare()
            began = trio.current_time()
            sandbox = await backend.start()
            cold = trio.current_time() - began
            # Said only now: where the network's policy could not be set, the start found that out.
            findings.append(Finding("sandbox", True, backend.description, () if docker else (WEAKER,)))
            if docker is not None:
                findings += await _examine_docker(docker)
            try:
                began = trio.current_time()
                outcome = await sandbox.run(RunRequest(0, 0, "print('hello')", "null", 30.0, 4096), lambda *_: None)
                warm = trio.current_time() - began
            finally:
                await sandbox.aclose()
            well = outcome.ending is Ending.COMPLETED and outcome.output == "hello\n"
            seen = f"cold start {cold * 1000:.0f} ms, a hello task {warm * 1000:.1f} ms"
            findings.append(Finding("hello task", well, seen if well else outcome.message))
        finally:
            await backend.aclose()
    except BackendUnavailable as error:
        findings.append(Finding("sandbox", False, str(error)))
    except SandboxError as error:
        findings.append(Finding("hello task", False, str(error)))
    return findings


async def _examine_docker(backend: DockerBackend) -> list[Finding]:
    """What the daemon is, and what stands between it and the worker."""
    isolation, socket = backend.isolation, await backend.probe_socket()
    findings = [Finding("docker socket", True, str(socket), (socket.advice,) if socket.advice else ())]
    if isolation is not None:
        findings.append(Finding("isolation", True, isolation.host, isolation.unlimited + isolation.advice))
    return findings
