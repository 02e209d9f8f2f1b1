"""What an attack is, and what is seen of one. Everything here is data; nothing is run."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from continuum.model import TaskRecord

MEMORY_MB = {"control": 128, "docker": 128, "runsc": 512, "bubblewrap": 128}
DISK_MB = 16
PIDS = 48
CPUS = 1.0
OPEN_FILES = 1024
OUTPUT_LIMIT = 65536
"""What the sandboxes under attack may use: little, so that scripts reach their limits soon. The unprotected one has
bounds far above, which only keep the machine alive."""

SCRIPT_UID = 65532

VICTIM_MARK = "v1ct1m"
"""How everything that belongs to the other tenant begins. Attackers put it together from two halves, so that what
they find is not their own code."""
WORKER_MARK = "w0rker"
"""The same for what is the worker's own: its environment, its database's password."""


class Verdict(enum.StrEnum):
    STOPPED = "stopped"
    SUCCEEDED = "succeeded"
    UNCLEAR = "unclear"
    """Neither was said nor seen: the attack itself is broken."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known from outside of how an attack went: the rows of TASKS, and in which sandboxes they ran.

    attack, before, aftermath, honest: `before` is what an earlier task left in its row, `aftermath` what the next one
    found, `honest` is a task that has nothing to do with any attack and ran at the very end.
    seconds: how long the attack's own task was held, by the database's clock.
    same_sandbox: whether attack and aftermath ran in the same one; a sandbox that was thrown away in between is as
    clean as can be. shared: whether the attack ran in the sandbox of the task before.
    seen: by what somebody outside saw it succeed while it ran; empty when there is nothing to report.
    measured: what somebody outside measured instead, so that the script's word is not asked for.
    """

    attack: TaskRecord
    before: TaskRecord | None
    aftermath: TaskRecord | None
    honest: TaskRecord | None
    seconds: float
    same_sandbox: bool
    shared: bool
    seen: str = ""
    measured: str = ""

    @property
    def lost(self) -> bool:
        """Whether the attack cost its sandbox."""
        return (self.attack.last_error or "").startswith("Sandbox lost")

    @property
    def timed_out(self) -> bool:
        return (self.attack.last_error or "").startswith("Timeout")


Judge = Callable[[Evidence], str]
"""Says by what an attack succeeded, seen from outside; empty when it did not."""


class Place(enum.Enum):
    """Where an attack needs to be run."""

    PLAIN = "plain"
    NETWORK = "network"
    """In a sandbox with a network, on which the test's own hosts wait."""


class Onlooker(enum.Enum):
    """Somebody outside who takes part while an attack runs."""

    NOBODY = "nobody"
    VISITOR = "visitor"
    """Connects to the sandbox from the host."""
    NEIGHBOUR = "neighbour"
    """Runs `Attack.neighbour` in another sandbox."""
    METER = "meter"
    """Measures on the host how much of its processors the sandbox uses, where it is a container."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One attack.

    wants: what the attacker is after, in a sentence.
    code: the script. It prints `SUCCEEDED: evidence` or `STOPPED: why`; an OSError that it leaves alone counts as
    stopped. It proves its point with as little as will do, leaves the host as it found it (a file of the kernel's is
    written with what it held) and is bounded by itself, whatever lets it through.
    before: what somebody else's task did in the same sandbox earlier.
    aftermath: what the next task in the same sandbox looks for; where there is one, its word counts.
    neighbour: what an honest task in another sandbox does meanwhile; it must end well.
    judge: what can be seen from outside. It needs no word from the script.
    may_die: the sandbox may end the script before it says anything.
    tenants: `before` is a task of one tenant and the attack of another.
    mess: what it does to a sandbox without protection would spoil that one for other attacks; every attack with an
    aftermath does.
    needs: what this kernel or machine may lack; then the unprotected sandbox cannot show the attack, and it does not count.
    open_on: where it is known to succeed, by target, in the words in which the target warns of it.
    """

    name: str
    wants: str
    code: str
    before: str = ""
    aftermath: str = ""
    neighbour: str = ""
    judge: Judge | None = None
    may_die: bool = False
    tenants: bool = False
    mess: bool = False
    timeout: float = 5.0
    place: Place = Place.PLAIN
    onlooker: Onlooker = Onlooker.NOBODY
    needs: str = ""
    open_on: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """How one attack ended on one target. detail: the evidence, or what stopped it."""

    attack: str
    target: str
    verdict: Verdict
    detail: str
    seconds: float


def judged(attack: Attack, evidence: Evidence) -> tuple[Verdict, str]:
    """Whether an attack succeeded. What was seen from outside comes first; a script's own word is heard after that."""
    seen = evidence.seen or (attack.judge(evidence) if attack.judge is not None else "")
    if seen:
        return Verdict.SUCCEEDED, seen
    if evidence.honest is not None and (harm := _harm(evidence.honest)):
        return Verdict.SUCCEEDED, f"an honest task afterwards {harm}"
    if evidence.measured:
        return Verdict.STOPPED, evidence.measured
    last = evidence.aftermath if attack.aftermath else evidence.attack
    assert last is not None
    lines = (last.output or "").splitlines()
    for line in lines:
        if line.startswith("SUCCEEDED: "):
            return Verdict.SUCCEEDED, line.removeprefix("SUCCEEDED: ")
    for line in lines:
        if line.startswith("STOPPED: "):
            thrown_away = attack.aftermath and not evidence.same_sandbox
            return Verdict.STOPPED, line.removeprefix("STOPPED: ") + (" (in a new sandbox)" if thrown_away else "")
    ended = (last.last_error or "").splitlines()
    watched = attack.judge is not None or attack.onlooker is not Onlooker.NOBODY
    if attack.may_die or (watched and not attack.aftermath):
        return Verdict.STOPPED, ended[0] if ended else "nothing came of it"
    return (
        Verdict.UNCLEAR,
        f"{last.status}: {last.last_error} {(last.output or '')[-300:]} {(last.error_output or '')[-300:]}",
    )


def _harm(honest: TaskRecord) -> str:
    if honest.status != "completed":
        return f"did not complete: {honest.last_error}"
    if (honest.output, honest.error_output) != (HONEST_OUTPUT, ""):
        return f"printed {honest.output!r} and {honest.error_output!r}"
    return ""


HONEST = """
import hashlib, json, os, sys, tempfile
numbers = json.loads(payload)
assert json.load(open(sys.argv[1])) == numbers
with tempfile.TemporaryFile(dir=os.getcwd()) as file:
    file.write(b"x" * 100_000)
print(sum(numbers), hashlib.sha256(b"honest").hexdigest()[:8])
"""
HONEST_PAYLOAD = [1, 2, 3]
HONEST_OUTPUT = "6 bf5b6382\n"
