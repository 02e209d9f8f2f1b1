"""CODE_POLICY: a look at a task's code before it runs, by static analysis. A seat belt, not a wall.

It finds what careless or lazily hostile code writes openly. Whoever knows that it is there gets past it with a line or two;
what a script can do is up to the sandbox alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import trio

from continuum.config import ConfigurationError, Settings
from continuum.model import ClaimedTask, Ending, Outcome
from continuum.nursery.backoff import Backoff
from continuum.nursery.screener import UNUSABLE
from continuum.nursery.signals import Signal
from continuum.nursery.state import Health

log = structlog.get_logger(__name__)

CPU_SECONDS = 10
"""Seconds of CPU time for one script. People's scripts take less than one."""
MEMORY = 1024 * 1024 * 1024
"""Bytes of address space for one analysis: a syntax tree is some hundred times the size of its text."""
LARGEST_SCRIPT = 1024 * 1024
"""Bytes of a script that is looked at. A library's module of 230 KB takes 1 s of CPU time, the densest code 8 s for 256 KB."""
DEADLINE = 60.0
"""Seconds for one analysis. It passes only on a host that is too busy for it, since CPU_SECONDS are over long before: which says
nothing of the script, but it must not hold a slot for ever."""
REMEMBERED = 4096
"""Scripts whose verdict is kept: a queue has few different ones, and a verdict is small."""
FINDINGS = 20
"""Findings that are told; the rest is only counted."""
LARGEST_ANSWER = 256 * 1024
"""Bytes of a screener's answer: FINDINGS of them, with room."""

SENT_BY_OTHERS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
"""Signals that end a screener because its worker is to end, and not because of what it read."""

LONGEST_RETRY = 10.0
"""Seconds between tries to get an analysis that failed back."""

SCREENER = Path(__file__).with_name("screener.py")
INSTALL = "pip install 'continuum-worker[screening]'"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule has found. message: may quote the script."""

    rule: str
    severity: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message} ({self.rule}, {self.severity})"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be said against a script: nothing, findings, or (`failure`) that it cannot be analysed. `str()` has it all, the
    first finding in the first line.

    count: of all findings; `findings` are the first of them. passing: the failure may be the host's as well, and is forgotten.
    """

    findings: tuple[Finding, ...] = ()
    count: int = 0
    failure: str = ""
    passing: bool = False

    @property
    def clean(self) -> bool:
        return not self.findings and not self.failure

    def __str__(self) -> str:
        if self.failure:
            return f"the code cannot be analysed: {self.failure}"
        more = [f"and {self.count - len(self.findings)} more"] if self.count > len(self.findings) else []
        return "\n".join([*map(str, self.findings), *more])


class ScreeningUnusable(Exception):
    """Bandit, or its configuration, cannot be used; the message says why."""


class ScreenerKilled(ScreeningUnusable):
    """An analysis was killed, which its own limits never do: the host was short of memory, most likely."""


class Screening:
    """Screens code as the settings say; `open_screening` makes it."""

    def __init__(self, settings: Settings) -> None:
        self.policy = settings.code_policy
        config = settings.code_policy_config
        self._request = json.dumps(
            {
                "config": str(config.absolute()) if config else None,
                "severity": settings.code_policy_severity.upper(),
                "confidence": settings.code_policy_confidence.upper(),
                "cpu_seconds": CPU_SECONDS,
                "memory": MEMORY,
                "answer": LARGEST_ANSWER,
                "findings": FINDINGS,
            }
        )
        self._quotes = settings.log_payloads
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()
        self._killed: set[bytes] = set()
        self._under_way: dict[bytes, trio.Event] = {}
        self._processes = trio.CapacityLimiter(max(1, (os.cpu_count() or 1) // 2))

    async def refuse(self, task: ClaimedTask) -> Outcome | None:
        """The outcome of a task whose code must not run; None lets it run.

        Raises `ScreeningUnusable` when the analysis itself does not work: nothing is known of the code then.
        """
        try:
            verdict = await self._verdict_on(task)
        except (OSError, ScreeningUnusable) as error:
            raise ScreeningUnusable(f"the code of a task could not be screened (CODE_POLICY): {error}") from error
        if verdict.clean or self.policy != "reject":
            return None
        if verdict.passing:
            return Outcome(Ending.INVALID, message=f"Not run under CODE_POLICY=reject: {verdict}")
        return Outcome(Ending.MALICIOUS, message=f"Refused by CODE_POLICY=reject: {verdict}")

    async def _verdict_on(self, task: ClaimedTask) -> Verdict:
        """What is known of a script, or is found out now, once for all who ask meanwhile."""
        code = (task.code or "").encode()
        digest = hashlib.sha256(code).digest()
        async with self._alone(digest):
            verdict = self._verdicts.get(digest)
            if verdict is None:
                async with self._processes:
                    verdict = await self._try(code, digest)
                if not verdict.passing:
                    self._verdicts[digest] = verdict
                if len(self._verdicts) > REMEMBERED:
                    self._verdicts.popitem(last=False)
                if not verdict.clean:
                    self._log(task, verdict)
            else:
                self._verdicts.move_to_end(digest)
        return verdict

    async def _try(self, code: bytes, digest: bytes) -> Verdict:
        """Analyse a script. Being killed says nothing of it the first time; twice in a row it ends, for nobody can tell whether
        it was the script, and it would go round for ever."""
        try:
            verdict = await self.analyse(code)
        except ScreenerKilled as error:
            if digest not in self._killed:
                if len(self._killed) >= REMEMBERED:
                    self._killed.clear()
                self._killed.add(digest)
                raise
            verdict = Verdict(failure=f"{error}, twice in a row", passing=True)
        self._killed.discard(digest)
        return verdict

    async def run(self, health: Health, work: Signal) -> None:
        """The service that brings the analysis back into use whenever it has failed: nothing is claimed until it works on a
        script in which nothing is. Never returns."""
        while True:
            await health.wait_for_problem("screening")
            backoff = Backoff(first=0.5, longest=LONGEST_RETRY)
            while True:
                await trio.sleep(backoff.next_delay())
                try:
                    problem = (await self.analyse(b"pass\n")).failure
                except (OSError, ScreeningUnusable) as error:
                    problem = str(error)
                if not problem:
                    break
                health.report("screening", f"code cannot be screened (CODE_POLICY={self.policy}): {problem}")
            log.info("code can be screened again")
            health.report("screening", None)
            work.notify()

    @asynccontextmanager
    async def _alone(self, digest: bytes) -> AsyncIterator[None]:
        """Nobody else asks about this script within the block."""
        while (other := self._under_way.get(digest)) is not None:
            await other.wait()
        self._under_way[digest] = trio.Event()
        try:
            yield
        finally:
            self._under_way.pop(digest).set()

    def _log(self, task: ClaimedTask, verdict: Verdict) -> None:
        """Once for each script. What a finding says may quote the script: where and by which rule is enough to look."""
        log.warning(
            "code was refused" if self.policy == "reject" else "code runs in spite of what was found in it",
            policy=self.policy,
            code_id=task.code_id,
            task_id=task.id,
            failure=verdict.failure,
            count=verdict.count,
            findings=[
                str(each) if self._quotes else f"line {each.line}: {each.rule}, {each.severity}"
                for each in verdict.findings
            ],
        )

    async def analyse(self, code: bytes) -> Verdict:
        """Analyse a script in a process of its own. Raises `ScreeningUnusable`, and OSError when none can be started."""
        if len(code) > LARGEST_SCRIPT:
            return Verdict(failure=f"it has {len(code)} bytes; at most {LARGEST_SCRIPT} can be")
        # A file and not a pipe: whatever becomes of the screener, its answer has a limit, which the system enforces. In memory,
        # since a worker's container may have nowhere to write.
        with os.fdopen(os.memfd_create("answer"), "r+b") as answered, trio.move_on_after(DEADLINE):
            done = await trio.run_process(
                [sys.executable, "-I", str(SCREENER), self._request],
                stdin=code,
                stdout=answered,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                start_new_session=True,
                check=False,
                deliver_cancel=_kill,
            )
            answered.seek(0)
            return _read_answer(done.returncode, answered.read(LARGEST_ANSWER))
        raise ScreeningUnusable(f"an analysis did not get its CPU time within {DEADLINE:g} s")


async def open_screening(settings: Settings) -> Screening | None:
    """What CODE_POLICY asks for, tried once; None when it is off.

    Raises `ConfigurationError` when bandit or its configuration cannot be used.
    """
    if settings.code_policy == "off":
        return None
    screening = Screening(settings)
    try:
        verdict = await screening.analyse(b"pass\n")
    except ScreeningUnusable as error:
        raise ConfigurationError(_advice(settings, str(error))) from None
    except OSError as error:
        raise ConfigurationError(f"CODE_POLICY={settings.code_policy}: no process can be started: {error}") from None
    if verdict.failure:
        raise ConfigurationError(f"CODE_POLICY={settings.code_policy}: the analysis does not work: {verdict.failure}")
    return screening


def _advice(settings: Settings, problem: str) -> str:
    if problem.startswith("ModuleNotFoundError"):
        return f"CODE_POLICY={settings.code_policy} needs bandit, which is not installed: {INSTALL}, or set CODE_POLICY=off"
    return f"CODE_POLICY_CONFIG={settings.code_policy_config}: bandit cannot use it: {' '.join(problem.split())}"


def _read_answer(code: int, text: bytes) -> Verdict:
    """The verdict that a screener gave, or what its end says of the script. It has read hostile text: nothing that it says may
    do harm here, nor in the database."""
    if -code in SENT_BY_OTHERS:
        raise ScreeningUnusable(f"somebody ended the analysis ({signal.Signals(-code).name})")
    if code == -signal.SIGKILL:
        raise ScreenerKilled("the analysis was killed (SIGKILL), as by a host that is short of memory")
    if code == -signal.SIGXCPU:
        return Verdict(failure=f"its analysis takes more than {CPU_SECONDS} s of CPU time")
    try:
        answer: dict[str, Any] = json.loads(text)
        if code == UNUSABLE:
            raise ScreeningUnusable(_plain(answer["unusable"]))
        if answer.get("syntax_error"):
            return Verdict()  # nothing of it can run: it fails by itself, and says why
        if failure := answer.get("failure"):
            return Verdict(failure=_plain(failure))
        findings = tuple(
            Finding(_plain(rule), _plain(severity), int(line), _plain(message))
            for rule, severity, line, message in answer["findings"]
        )
        return Verdict(findings, int(answer["count"]))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return Verdict(failure=f"its analysis ended with {code} and no answer")


def _plain(text: object) -> str:
    """One line without anything that a terminal obeys or a database refuses."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in str(text))


async def _kill(process: trio.Process) -> None:
    process.kill()
