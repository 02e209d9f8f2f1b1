"""CockroachDB's grammar accepts every statement that Continuum sends it, wherever Go is and no server needs to be."""

from __future__ import annotations

import ast
import datetime as dt
import json
import random
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import trio
import trio.testing

from continuum.config import Settings
from continuum.db import (
    admission,
    changefeed,
    circles,
    cockroach,
    database,
    open_database,
    statements,
    statements_limits,
    statements_schedules,
)
from continuum.db.cockroach_ring import READ, WALK, WALK_ON
from continuum.db.cockroach_waiting import HEAD, WINDOW
from continuum.db.dialect import SCHEMA_VERSION
from continuum.db.permits import FIND_LIMITS, FIND_PERMITS
from continuum.db.pool import RESTED
from continuum.db.protocol import Database
from continuum.model import (
    Completion,
    DeadLetterFilter,
    DeadLetterPlace,
    EndedFilter,
    EndedTask,
    Limit,
    NewTask,
    PartialOutput,
    Scope,
    Status,
    TaskFilter,
    WorkerReport,
)
from continuum.schedules import Move, NewSchedule, Waiting
from tests.conftest import require
from tests.grammar.parser import NotBuilt, build, find_go, refused
from tests.grammar.recorder import ADAPTER, SENDERS, Answer, Recorder
from tests.support.kubernetes import queue_depth
from tests.support.listener import listening

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

ONCE_ONE_COMPLETED = [(True, False), (True, True)]
"""Which kinds of tasks need wait for a batch no longer."""

LONG: Answer = [("", "a", 0, 3, number) for number in range(READ)]
"""What a look at a long queue returns."""

ANSWERS: dict[str, list[Answer]] = {
    statements.SCHEMA_VERSION: [[(SCHEMA_VERSION,)]],
    statements.RELEASE: [[(0,)]],
    statements.REPORT: [[(False,)]],
    statements.RELEASE_EXCEPT: [[(0,)]],
    statements.PROMOTE: [[(0,)]],
    statements.DELETE_ENDED: [[(0,)]],
    statements.NEXT_DUE: [[(None, None)]],
    statements.CANCEL_LATE: [[(0,)]],
    statements.FIND_STALE_PERMITS: [[(1,)]],
    statements.FIND_BEYOND: [[("running:a", 2, 1, 1)]],
    statements.EXPIRED_LEASES: [[(1, 1, 1, 3, None, 0.0, 1)]],
    statements.PENDING_LIMITS: [[("queue", "", 10)]],
    statements.INSERT_TASKS: [[(1, "", None, None)]],
    statements.FIND_EARLIER: [[(2, "", "key", None)]],
    admission.LOOK: [[(1, 1)]],
    admission.WAITING_PAGE: [[(1, "", "sequence", "key", 0, [7], False, False, "a", "a")]],
    admission.ENDED: [[("completed", 1, "", "sequence", "key", 0, [], False, False, "a", None)]],
    admission.DEPENDENTS: [[(1, "", None, None, 0, [7], False, False, None, None)]],
    admission.STATUSES: [[(7, "", "pending")]],
    admission.FIRST.replace("{n}", "0"): [[(1, "", "sequence", "key", 0, [], False, False, None, None)]],
    admission.HEAD.replace("{n}", "0"): [[(1, "", "sequence", "key", 0, [], False, False, None, None, False)]],
    admission.STANDING.replace("{n}", "0"): [
        [("", "a", 1, None, 2, None, None, None)],
        [("", "a", 1, None, 2, None, None, None)],
        [("", "a", 1, None, None, None, None, None)],
    ],
    admission.dependents_of_batch(ONCE_ONE_COMPLETED): [[(3, "", None, None, 0, [], True, False, None, "a")], []],
    circles.AHEAD: [[("pending", True, None, 1, "", None, None, 0, [], False, False, "a", "a")]],
    circles.BLOCKED_MEMBER.replace("{n}", "0"): [[("", "a")]],
    circles.BLOCKED_MEMBERS.replace("{n}", "0"): [[(1, "", "a")]],
    statements.FIND_TASKS: [[("", 7)]],
    statements_limits.WAITS_FOR: [[("other_tasks",)]],
    statements.FIND_BATCHES: [[("", "a")]],
    statements.RETRY_MANY: [[(2,)]],
    statements.DEPENDS_ON: [[("", [7], "a")]],
    statements.DEPENDENCIES_OF: [[(7,)], []],
    statements.COPIES_OF: [[]],
    admission.TAKEN.replace("{n}", "0"): [[("", "key", 0)]],
    statements_schedules.NEXT: [[(NOW, None)]],
    statements.CLAIM_WEBHOOKS: [[(1, "https://example.com", 1, "", "failed", None, 1, 1, None, NOW, NOW, NOW)]],
    statements.statistics(cockroach.COCKROACH.as_of): [
        psycopg.errors.UndefinedTable("it was not there five seconds ago")
    ],
    statements.statistics(): [[(0,) * 10]],
    statements.oldest_pending(cockroach.COCKROACH.as_of): [[(None,)]],
    WALK: [LONG, *[LONG, []] * 30],
    WALK_ON: [[("", "b", 0, 3, 1)]],
    HEAD: [LONG],
    WINDOW: [[("", "a", 0, 4, 1)]],
    FIND_LIMITS: [
        [("tenant", "*", 1.0, 2, 3, 4.0, None), ("code", "11111111-1111-1111-1111-111111111111", *[None] * 4, True)],
        [],
    ],
    statements.FIND_PARKED: [[("!22222222-2222-2222-2222-222222222222",)]],
    FIND_PERMITS: [[], [("running:a", 2, [1], None, False), ("rate:a", 3, [1], None, False)], []],
    cockroach.SHOW_SCHEMA: [[("CREATE TABLE tasks ()",)], [("ttl_expiration_expression",)]],
    changefeed.TAKE_PLACE: [[(1,)]],
    changefeed.KEEP_PLACE: [[(1,)]],
    changefeed.NOW: [[("1.0",)]],
    changefeed.FEED: [
        psycopg.errors.FeatureNotSupported("rangefeeds require the kv.rangefeed.enabled setting"),
        [(None, None, json.dumps({"resolved": "2.0"}))],
    ],
}


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    """What has heard everything that the adapter says to CockroachDB, on a clock that waits for nothing."""
    recorder = Recorder({cockroach.COCKROACH.says(statement): answers for statement, answers in ANSWERS.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "connect", recorder.connect)
        patch.setattr(random, "randint", lambda first, _: first)  # where a worker begins, so that answers come in order
        trio.run(_say_everything, recorder, clock=trio.testing.MockClock(autojump_threshold=0))
    yield recorder
    recorder.close()


async def _say_everything(recorder: Recorder) -> None:
    settings = Settings.model_validate({"database_url": "postgresql://nowhere/queue"})
    async with open_database(settings) as queue:
        await _use_every_verb(queue)
        async with listening(queue, running=1):
            with trio.move_on_after(120):
                while recorder.not_reached():
                    await trio.sleep(1)


async def _use_every_verb(queue: Database) -> None:
    task = NewTask(code="print('hello')")
    await queue.migrate()
    await queue.check_schema()
    await queue.submit([task, NewTask(code="print('hello')", idempotency_key="key", idempotency_window=60)])
    await queue.submit([NewTask(code="print('hello')", depends_on=[7], batch="b", depends_batch="a")])
    for limit in (1, 3, 3):
        await queue.claim("worker", limit, lease=30)
    completion = Completion(1, 1, Status.COMPLETED, 0, "", "", None)
    await queue.complete("worker", [completion])
    long = "x" * 100_000
    await queue.complete("worker", [Completion(1, 2, Status.COMPLETED, 0, long, long, None)])
    await queue.release("worker", [completion.lease])
    await queue.release_except("worker", [completion.lease])
    await queue.heartbeat("worker", [completion.lease], lease=30)
    await queue.progress("worker", [PartialOutput(1, 1, "", ""), PartialOutput(1, 1, long, long)])
    await queue.report(WorkerReport("worker", "host", 1, "0", 4, 0, "docker"))
    await queue.drain("worker")
    await queue.sign_off("worker")
    await queue.promote()
    await queue.admit_after([1])
    await queue.admit_page()
    await queue.dependencies(1)
    await queue.batch("tenant", "a")
    await queue.resume_codes()
    await queue.cancel_late("worker")
    await queue.recover("worker")
    await queue.take_duty("retention", "worker", 60)
    await queue.expire({Status.COMPLETED: 86400})
    await queue.expire({})
    await queue.purge(Status.COMPLETED, 86400)
    ended = EndedTask(1, 1, NOW, 5)
    await queue.ended(EndedFilter(Status.COMPLETED, tenant="t", name="n"), after=[ended])
    await queue.delete_ended([ended])
    await queue.cancel(1)
    await queue.fetch([1])
    await queue.still_open([1])
    await queue.statistics()
    await queue.oldest_pending()
    await queue.workers()
    (delivery,) = await queue.claim_webhooks(1, lease=30)
    await queue.settle_webhook(delivery, None)
    await queue.put_off_webhooks({delivery: 5.0})
    await queue.retry(1)
    await queue.dead_letters(
        DeadLetterFilter("t", "n", "e", "11111111-1111-1111-1111-111111111111", NOW), DeadLetterPlace(NOW, 1)
    )
    await queue.retry_many([1])
    await queue.limits()
    await queue.limit_uses()
    await queue.held_back()
    await queue.waits_for(1)
    await queue.set_limit(Limit(Scope.TENANT, "t", weight=2))
    await queue.clear_limit(Scope.TENANT, "t")
    await queue.store_code("print('hello')")
    await queue.fetch_code("11111111-1111-1111-1111-111111111111")
    await queue.codes()
    await queue.search(
        TaskFilter(text="1", statuses=frozenset({"failed"}), tenant="t", worker_id="w", error="e", since=NOW)
    )
    await queue.failures(NOW)
    await queue.depths()
    await queue.running()
    await _use_schedules(queue, task)
    await trio.sleep(RESTED + 1)
    await queue.ping()


async def _use_schedules(queue: Database, task: NewTask) -> None:
    await queue.put_schedule(NewSchedule("nightly", "0 2 * * *", task))
    await queue.put_schedule(NewSchedule("nightly", "0 2 * * *", task), replace=True)
    await queue.look_at_schedules()
    await queue.move_schedules(
        [Move(Waiting("nightly", "0 2 * * *", "UTC", "one", 0.0, NOW, NOW, None, None), NOW, NOW, NOW)]
    )
    await queue.schedules()
    await queue.fetch_schedule("nightly")
    await queue.pause_schedule("nightly")
    await queue.remove_schedule("nightly")


@pytest.fixture(scope="session")
def program() -> Path:
    """The grammar."""
    require("go", find_go() is not None, "the grammar of CockroachDB is a Go module: put `go` on PATH")
    try:
        return build()
    except NotBuilt as error:
        require("go", False, str(error))
        raise


async def test_no_call_that_sends_a_statement_was_left_out(recorder: Recorder) -> None:
    assert not recorder.not_reached(), "use them in this file, so that what they send is held against the grammar"


def test_nobody_but_the_adapter_sends_statements() -> None:
    sending = {
        file
        for file in ADAPTER.parent.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in SENDERS & {"execute", "executemany", "copy", "stream"}
        and not ast.unparse(node.func.value).startswith("client")
    }
    assert {file.parent for file in sending} == {ADAPTER}


async def test_the_grammar_accepts_every_statement(recorder: Recorder, program: Path) -> None:
    said = dict(recorder.heard)
    said[queue_depth()[0]] = "deploy/kubernetes/keda"
    problems = {said[statement]: why for statement, why in refused(program, list(said)).items()}
    assert not problems


def test_a_wrong_statement_is_told_with_what_is_wrong(program: Path) -> None:
    right, wrong = "SELECT 1", "SELECT id FROM tasks FOR UPDATE SKIPPED LOCKED"
    problems = refused(program, [right, wrong, "LISTEN tasks_updated", "SELECT 1; SELECT 2", ""])
    assert set(problems) == {wrong, "LISTEN tasks_updated", "SELECT 1; SELECT 2", ""}
    assert 'at or near "skipped"' in problems[wrong]
    assert problems["SELECT 1; SELECT 2"] == "2 statements instead of one"


async def test_a_statement_of_the_adapter_that_went_wrong_is_named(recorder: Recorder, program: Path) -> None:
    spoiled = {statement.replace("SKIP LOCKED", "LOCKED SKIPPED"): name for statement, name in recorder.heard.items()}
    problems = {spoiled[statement] for statement in refused(program, list(spoiled))}
    assert problems == {
        "SqlDatabase.heartbeat", "SqlDatabase.promote", "SqlDatabase.recover", "SqlDatabase.purge.<locals>.body",
        "SqlDatabase.claim_webhooks", "SqlDatabase.cancel_late", "SqlDatabase.delete_ended", "SqlSchedules.move_schedules",
        "claim_turns", "park", "SqlDatabase.resume_codes",
    }  # fmt: skip
