"""Circles: tasks that wait for each other, so that none of them would ever begin.

They take somebody who adds a task to a batch for which another one waits that this one waits for, or who writes later ids into
`depends_on`. Only a look for what was lost looks for them, ahead of those tasks that may be in one: those that depend on a later
one, or on a batch of which nothing runs and some tasks wait themselves. What is ahead is followed a generation at a time, each
task and each batch once, and outside of the lock: who waits in a circle stays there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from continuum.db import statements
from continuum.db.admission import Key, Run, Waiting, by_key, standings_of
from continuum.dependencies import Standing
from continuum.model import TERMINAL, Status

MOST_AHEAD = 20_000
"""Tasks that are followed from one page. What lies beyond counts as if it went on."""
AT_ONCE = 5000
"""Tasks that are read by one statement."""

BLOCKED = """status = 'pending' AND run_at IS NULL AND NOT admitted
          AND (sequence_key IS NOT NULL OR depends_on IS NOT NULL OR depends_batch IS NOT NULL)"""
"""Which tasks wait for others to end: the condition of the index `tasks_batch_waiting`, but for the batch."""

_COLUMNS = f"""status, {BLOCKED}, (
        SELECT max(before.id) FROM tasks AS before
        WHERE coalesce(before.tenant, '') = coalesce(tasks.tenant, '') AND before.sequence_key = tasks.sequence_key
          AND before.sequence_key IS NOT NULL AND before.status IN ('pending', 'processing')
          AND NOT before.admitted AND before.id < tasks.id),
    id, coalesce(tenant, ''), sequence_key, concurrency_key, priority,
    coalesce(depends_on, ARRAY[]::int8[]), depends_any, depends_ended, batch, depends_batch"""

AHEAD = f"SELECT {_COLUMNS} FROM tasks WHERE id = ANY (%(ids)s::int8[])"
"""Tasks, and the one before each in its sequence."""

_OF_BATCH = "coalesce(tenant, '') = %(tenant_{n})s AND batch = %(key_{n})s AND batch IS NOT NULL"

BLOCKED_MEMBER = f"""(SELECT %(tenant_{{n}})s::text, %(key_{{n}})s::text WHERE EXISTS (
    SELECT 1 FROM tasks WHERE {_OF_BATCH} AND {BLOCKED}))"""
"""Whether a task of a batch waits for others."""

BLOCKED_MEMBERS = f"""(
    SELECT id, coalesce(tenant, ''), batch FROM tasks WHERE {_OF_BATCH} AND {BLOCKED} ORDER BY id LIMIT {MOST_AHEAD})"""
"""All that do."""

FREE_MEMBER = f"""(SELECT %(tenant_{{n}})s::text, %(key_{{n}})s::text WHERE EXISTS (
    SELECT 1 FROM tasks WHERE {statements.MEMBERS.format(tenant="%(tenant_{n})s", batch="%(key_{n})s")}
      AND status IN ('pending', 'processing') AND NOT ({BLOCKED})))"""
"""Whether one does not, and has not ended."""


class Part(NamedTuple):
    """What a task waits for, other than a task. kind: `any`, one of its dependencies; `sequence`, who is before it; `batch`, all
    tasks of a batch, or `any of batch`."""

    kind: str
    of: Hashable


Node = int | Part


class Needs(NamedTuple):
    """What a task, or a part, waits for, and whether one of these is enough."""

    nodes: Sequence[Node]
    any_one: bool = False


@dataclass(slots=True)
class Ahead:
    """What is known of who waits for whom.

    statuses: of tasks, by tenant and id. waiting: who waits for others to end, with the one before it in its sequence. members:
    those of each batch that do. free: batches of which others have not ended, either.
    """

    statuses: dict[tuple[str, int], str] = field(default_factory=dict)
    waiting: dict[int, tuple[Waiting, int | None]] = field(default_factory=dict)
    standings: dict[Key, Standing] = field(default_factory=dict)
    members: dict[Key, list[int]] = field(default_factory=dict)
    free: set[Key] = field(default_factory=set)

    def needs(self) -> dict[Node, Needs]:
        """As a graph, of those that wait in earnest: who may begin, or never may, is not in it."""
        graph: dict[Node, Needs] = {}
        for task, before in self.waiting.values():
            verdict = task.judged(self.statuses, self.standings)
            if isinstance(verdict, str):
                continue
            nodes: list[Node] = []
            if before is not None:
                nodes.append(Part("sequence", before))
                graph[nodes[0]] = Needs([before])
            if verdict is None:
                dependencies = [*self._unfinished(task)]
                if task.depends_any:
                    graph[Part("any", task.id)] = Needs(dependencies, any_one=True)
                    dependencies = [Part("any", task.id)]
                nodes += dependencies
            if nodes:
                graph[task.id] = Needs(nodes)
        for key, members in self.members.items():
            graph[Part("batch", key)] = Needs(members)
            if key not in self.free:
                graph[Part("any of batch", key)] = Needs(members, any_one=True)
        return graph

    def _unfinished(self, task: Waiting) -> Iterable[Node]:
        for each in task.depends_on:
            if each is not None and self.statuses.get((task.tenant, each), Status.COMPLETED) not in TERMINAL:
                yield each
        if task.waits_for is not None and self.standings[task.waits_for].unfinished:
            yield Part("any of batch" if task.depends_any else "batch", task.waits_for)

    def refused(self, suspects: Iterable[int]) -> dict[int, str]:
        """One task of each circle that these are in, or behind, and why it is cancelled: the newest of those that wait by a
        dependency."""
        graph = self.needs()
        refused = {}
        for circle in circles(graph, suspects):
            following = dict(zip(circle, [*circle[1:], circle[0]], strict=True))
            newest = max(
                node
                for node, then in following.items()
                if isinstance(node, int) and not (isinstance(then, Part) and then.kind == "sequence")
            )
            refused[newest] = _reason(newest, following)
        return refused


def _reason(task_id: int, following: Mapping[Node, Node]) -> str:
    node, batch = following[task_id], None
    while isinstance(node, Part):
        if isinstance(node.of, tuple):
            batch = node.of[1]
        node = following[node]
    if batch is not None:
        return f"Not run: it depends on the batch {batch}, of which task {node} waits for this one"
    return f"Not run: it depends on task {node}, which waits for this one"


def is_suspect(task: Waiting) -> bool:
    """Whether a task that waits may be in a circle: in each somebody waits for a batch, or for a task that is no older."""
    return task.waits_for is not None or depends_on_later(task)


def depends_on_later(task: Waiting) -> bool:
    """Whether a task depends on one that is no older, which takes somebody who writes its id by hand."""
    return any(each is not None and each >= task.id for each in task.depends_on)


def circles(graph: Mapping[Node, Needs], starts: Iterable[int]) -> list[list[Node]]:
    """Circles of those that wait for ever, as one meets them from these on, each in the order of who waits for whom."""
    stuck = graph.keys() - _going_on(graph)
    found = []
    seen: set[Node] = set()
    for start in sorted(starts, reverse=True):
        path: dict[Node, None] = {}
        node: Node = start
        while node in stuck and node not in seen:
            path[node] = None
            seen.add(node)
            node = next(each for each in graph[node].nodes if each in stuck)
        if node in path:
            walked = [*path]
            found.append(walked[walked.index(node) :])
    return found


def _going_on(graph: Mapping[Node, Needs]) -> set[Node]:
    """Who waits for what comes sooner or later, if all that waits for nobody does."""
    behind: defaultdict[Node, list[Node]] = defaultdict(list)
    missing: dict[Node, int] = {}
    for node, needs in graph.items():
        missing[node] = sum(each in graph for each in needs.nodes)
        if needs.any_one:
            missing[node] = min(1, missing[node]) if missing[node] == len(needs.nodes) else 0
        for each in needs.nodes:
            behind[each].append(node)
    ready = [node for node, count in missing.items() if not count]
    going_on = set(ready)
    while ready:
        for node in behind[ready.pop()]:
            missing[node] -= 1
            if not missing[node]:
                going_on.add(node)
                ready.append(node)
    return going_on


async def in_circles(run: Run, page: Sequence[Waiting]) -> dict[int, str]:
    """Which tasks are to be cancelled so that those of a page do not wait for ever, and why."""
    suspects = [each for each in page if is_suspect(each)]
    batches = {each.waits_for for each in suspects if each.waits_for}
    if not suspects:
        return {}
    standings = await standings_of(run, batches)
    idle = [key for key, batch in standings.items() if Status.PROCESSING not in batch.one_of and batch.unfinished]
    blocked = {(tenant, name) for tenant, name in await by_key(run, BLOCKED_MEMBER, idle)}
    starts = [each.id for each in suspects if each.waits_for in blocked or depends_on_later(each)]
    return (await _ahead(run, starts)).refused(starts) if starts else {}


async def _ahead(run: Run, starts: Iterable[int]) -> Ahead:
    """What is known of all that these wait for."""
    ahead = Ahead()
    seen: set[int] = set()
    ids = {*starts}
    batches: set[Key] = set()
    while (ids or batches) and len(seen) < MOST_AHEAD:
        seen |= ids
        rows = [
            row
            for first in range(0, len(ids), AT_ONCE)
            for row in await run(AHEAD, {"ids": sorted(ids)[first : first + AT_ONCE]})
        ]
        known = [(status, blocked, before, Waiting(*values)) for status, blocked, before, *values in rows]
        ahead.statuses |= {(task.tenant, task.id): status for status, _, _, task in known}
        ahead.waiting |= {task.id: (task, before) for _, blocked, before, task in known if blocked}
        batches = {task.waits_for for _, blocked, _, task in known if blocked and task.waits_for} - ahead.members.keys()
        ids = {each for _, blocked, _, task in known if blocked for each in task.depends_on if each is not None}
        ids |= {before for _, blocked, before, _ in known if blocked and before is not None}
        ahead.standings |= await standings_of(run, batches)
        ahead.members |= {key: [] for key in batches}
        ahead.free |= {(tenant, name) for tenant, name in await by_key(run, FREE_MEMBER, batches)}
        for task_id, tenant, name in await by_key(run, BLOCKED_MEMBERS, batches):
            ahead.members[tenant, name].append(task_id)
            ids.add(task_id)
        ids -= seen
    return ahead
