"""`continuum doctor`: each thing a worker needs, tried for real, with what to do about what fails."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

import trio
import typer

from continuum.cli.errors import DATABASE, NO_DATABASE, OK, SANDBOX, USAGE
from continuum.config import ConfigurationError, Settings
from continuum.db import open_database
from continuum.db.advice import advice_on
from continuum.db.errors import DatabaseError, DatabaseUnavailable
from continuum.model import Ending, RunRequest
from continuum.nursery.screening import open_screening
from continuum.nursery.state import version
from continuum.sandbox import WEAKER, choose_backend
from continuum.sandbox.docker import DockerBackend
from continuum.sandbox.protocol import BackendUnavailable, SandboxError

DEADLINE = 120.0
"""Seconds for one check; pulling an image may be part of it."""


_CODES = {"database": DATABASE, "schema": DATABASE, "screening": USAGE}


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
    """Run every check, print the findings, and return the exit code that fits the first that is not well."""
    findings = [Finding("configuration", True, f"continuum {version()} on Python {sys.version.split()[0]}")]
    findings += await _within(DEADLINE, "database", lambda: _examine_database(settings))
    findings += await _within(DEADLINE, "sandbox", lambda: _examine_sandbox(settings))
    if settings.code_policy != "off":
        findings += await _within(DEADLINE, "screening", lambda: _examine_screening(settings))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            typer.echo(f"{'ok  ' if finding.well else 'FAIL'}  {finding.what}: {finding.detail}")
            for advice in finding.advice:
                typer.echo(f"      advice: {advice}")
    for finding in findings:
        if not finding.well:
            return _CODES.get(finding.what, SANDBOX)
    return OK


async def _within(seconds: float, what: str, check: Callable[[], Awaitable[list[Finding]]]) -> list[Finding]:
    with trio.move_on_after(seconds):
        return await check()
    return [Finding(what, False, f"no answer within {seconds:g} s")]


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
    except DatabaseError as error:
        unclear = isinstance(error, DatabaseUnavailable) and not advice_on(str(error))
        advice = f"; {NO_DATABASE}" if unclear else ""
        findings.append(Finding("schema" if findings else "database", False, f"{error}{advice}"))
    return findings


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
