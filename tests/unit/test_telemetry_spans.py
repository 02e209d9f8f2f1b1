"""The spans of a worker and of who submits, with the SDK's exporter in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import structlog
import trio
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from continuum.db.errors import InvalidTask
from continuum.model import Ending, Outcome
from continuum.telemetry import current_traceparent, submission, submitted
from continuum.telemetry.attempts import REMEMBERED
from continuum.telemetry.tracing import Own, own
from tests.support.telemetry import TRACEPARENT, Recorded, claimed, completion, tell_a_whole_story

UNSAMPLED = TRACEPARENT[:-2] + "00"


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


@contextmanager
def submits_told_to(recorded: Recorded) -> Iterator[None]:
    own.set(Own(recorded.tracer, recorded.telemetry.tasks_sent))
    try:
        yield
    finally:
        own.set(None)


def attributes_of(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def ids_of_links(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


def test_names_kinds_and_attributes_are_those_of_the_conventions(recorded: Recorded) -> None:
    with submits_told_to(recorded), submission(1) as traceparent:
        submitted([7])
    tell_a_whole_story(recorded.telemetry, replace(claimed(traceparent=traceparent), tenant="acme"))
    described = {
        span.name: (
            span.kind,
            attributes_of(span)["messaging.operation.name"],
            attributes_of(span)["messaging.operation.type"],
            attributes_of(span).get("messaging.message.id"),
            attributes_of(span).get("messaging.batch.message_count"),
        )
        for span in recorded.all_spans
    }
    assert described == {
        "submit tasks": (SpanKind.PRODUCER, "submit", "send", "7", None),
        "claim tasks": (SpanKind.CLIENT, "claim", "receive", None, 1),
        "execute tasks": (SpanKind.CONSUMER, "execute", "process", "7", None),
        "complete tasks": (SpanKind.CLIENT, "complete", "settle", None, 1),
    }
    for span in recorded.all_spans:
        common = {"messaging.system": "continuum", "messaging.destination.name": "tasks"}
        assert common.items() <= attributes_of(span).items()
    run = attributes_of(recorded.spans["execute tasks"])
    assert {name: value for name, value in run.items() if not name.startswith("messaging.")} == {
        "continuum.task.attempt": 1,
        "continuum.task.priority": 5,
        "continuum.task.tenant": "acme",
        "continuum.task.name": "report",
        "continuum.task.ending": "completed",
        "process.exit.code": 0,
    }


def test_a_run_is_a_child_of_its_submission_and_links_to_it(recorded: Recorded) -> None:
    with submits_told_to(recorded), submission(1) as traceparent:
        assert traceparent == current_traceparent() is not None
    tell_a_whole_story(recorded.telemetry, claimed(traceparent=traceparent))
    submit, run = recorded.spans["submit tasks"], recorded.spans["execute tasks"]
    assert run.context.trace_id == submit.context.trace_id
    assert run.parent is not None
    assert run.parent.span_id == submit.context.span_id
    assert ids_of_links(run) == [submit.context.span_id]


def test_what_many_tasks_share_has_a_trace_of_its_own_and_links_to_each(recorded: Recorded) -> None:
    tasks = [claimed(1), claimed(2, traceparent=None)]
    recorded.telemetry.tasks_claimed(tasks, 0.5)
    runs = []
    for task in tasks:
        with recorded.telemetry.execution(task):
            runs.append(trace.get_current_span().get_span_context().span_id)
        recorded.telemetry.task_ended(task, Outcome(Ending.COMPLETED, 0), 1.0)
    recorded.telemetry.outcomes_written([completion(task) for task in tasks], {task.lease for task in tasks}, 0.25)
    claim, complete = recorded.spans["claim tasks"], recorded.spans["complete tasks"]
    for span in (claim, complete):
        assert span.parent is None
        assert attributes_of(span)["messaging.batch.message_count"] == 2
    assert ids_of_links(claim) == [int(TRACEPARENT.split("-")[2], 16)], "the run of the other has not begun"
    assert ids_of_links(complete) == runs
    assert len({span.context.trace_id for span in recorded.all_spans}) == 4, "the second task began one of its own"


@pytest.mark.parametrize("traceparent", [None, "", "nonsense", "00-0-0-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_task_without_a_usable_traceparent_begins_a_trace_with_its_run(
    recorded: Recorded, traceparent: str | None
) -> None:
    tell_a_whole_story(recorded.telemetry, claimed(traceparent=traceparent))
    run = recorded.spans["execute tasks"]
    assert run.parent is None
    assert not run.links


def test_a_producer_that_does_not_sample_is_respected(recorded: Recorded) -> None:
    tell_a_whole_story(recorded.telemetry, claimed(traceparent=UNSAMPLED))
    assert recorded.spans == {}
    with recorded.telemetry.execution(claimed(8, traceparent=UNSAMPLED)):
        assert (current_traceparent() or "").endswith("-00"), "and what the script calls is told so"


def test_claim_and_complete_last_as_long_as_the_calls_they_shared(recorded: Recorded) -> None:
    tell_a_whole_story(recorded.telemetry, claimed())
    for name, seconds in (("claim tasks", 0.5), ("complete tasks", 0.25)):
        span = recorded.spans[name]
        assert span.start_time is not None
        assert span.end_time is not None
        assert (span.end_time - span.start_time) / 1e9 == pytest.approx(seconds)


def test_a_failed_run_is_an_error_with_its_reason_and_exit_code(recorded: Recorded) -> None:
    tell_a_whole_story(recorded.telemetry, claimed(), Outcome(Ending.FAILED, 3, message="exit code 3"))
    execute = recorded.spans["execute tasks"]
    assert not execute.status.is_ok
    assert execute.attributes is not None
    assert execute.attributes["continuum.task.ending"] == "failed"
    assert execute.attributes["process.exit.code"] == 3


def test_spans_hold_no_payload_code_or_output(recorded: Recorded) -> None:
    task = replace(claimed(), payload='"secret"', code="secret")
    tell_a_whole_story(recorded.telemetry, task, Outcome(Ending.FAILED, 1, "secret", "secret", "secret"))
    assert all("secret" not in span.to_json() for span in recorded.spans.values())


def test_inside_the_run_its_span_is_the_current_one(recorded: Recorded) -> None:
    recorded.telemetry.tasks_claimed([claimed()])
    with recorded.telemetry.execution(claimed()):
        inside = current_traceparent()
    assert inside is not None
    assert inside.split("-")[1] == TRACEPARENT.split("-")[1]
    assert inside != TRACEPARENT
    assert current_traceparent() is None


async def test_a_run_that_is_stopped_ends_its_span_as_an_error(recorded: Recorded) -> None:
    recorded.telemetry.tasks_claimed([claimed()])
    with trio.CancelScope() as scope, recorded.telemetry.execution(claimed()):
        scope.cancel()
        await trio.sleep_forever()
    assert recorded.spans["execute tasks"].status.description == "abandoned"


def test_attempts_that_never_end_do_not_fill_the_memory(recorded: Recorded) -> None:
    for number in range(REMEMBERED + 10):
        recorded.telemetry.tasks_claimed([claimed(number)])
    assert len(recorded.telemetry._attempts._attempts) == REMEMBERED


def test_without_a_provider_a_producer_stores_no_traceparent() -> None:
    with submission(1) as traceparent:
        assert traceparent is None
    assert current_traceparent() is None


def test_a_producer_s_own_trace_is_continued(recorded: Recorded) -> None:
    with recorded.tracer.start_as_current_span("request") as request, submission(3) as traceparent:
        assert traceparent is not None
        assert traceparent.split("-")[1] == trace.format_trace_id(request.get_span_context().trace_id)


@pytest.mark.parametrize("contents", [False, True])
def test_what_a_task_holds_is_told_only_where_it_may_be(contents: bool) -> None:
    recorded = Recorded(contents=contents)
    task = replace(claimed(), payload='"canary-payload"')
    outcome = Outcome(Ending.FAILED, 1, "canary-output" + "." * 5000, "canary-error", "ValueError: canary-message")
    with structlog.testing.capture_logs() as logs:
        tell_a_whole_story(recorded.telemetry, task, outcome)
    (line,) = logs
    assert (line["log_level"], line["task_id"], line["ending"]) == ("debug", 7, "failed")
    attributes = recorded.spans["execute tasks"].attributes or {}
    for told in (line, {name.removeprefix("continuum.task."): text for name, text in attributes.items()}):
        assert ("canary" in str(told)) is contents
        if contents:
            assert (told["payload"], told["error_output"]) == ('"canary-payload"', "canary-error")
            assert told["message"] == "ValueError: canary-message"
            assert len(str(told["output"])) == 2000
    assert "canary" not in repr((task, outcome)), "not even where somebody logs the whole of it"


def test_a_submission_that_fails_tells_the_kind_of_its_error_and_not_what_it_quotes(recorded: Recorded) -> None:
    with submits_told_to(recorded), pytest.raises(InvalidTask), submission(1):
        raise InvalidTask("canary")
    span = recorded.spans["submit tasks"]
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "InvalidTask"
    assert "canary" not in span.to_json()
