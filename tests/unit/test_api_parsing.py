"""What the HTTP API takes and refuses, and what it says of it."""

from __future__ import annotations

import datetime as dt
import json
from urllib.parse import parse_qsl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from werkzeug.datastructures import MultiDict

from continuum.db.validation import check_new_tasks
from continuum.status.api_errors import Refusal
from continuum.status.api_inputs import MOST_TASKS, CodesQuery, Input, LogsQuery, SearchQuery, TaskPath, WaitQuery
from continuum.status.api_parsing import parse_query, parse_tasks

CODE_ID = "6f1d2a9c-0a52-5d7e-9a53-0f3d51c0de00"


def refusal(body: bytes | str, key: str | None = None) -> str:
    with pytest.raises(Refusal) as caught:
        parse_tasks(body.encode() if isinstance(body, str) else body, key)
    return str(caught.value)


def test_a_task_has_the_fields_of_a_new_task() -> None:
    body = {
        "name": "report",
        "description": "of today",
        "code": "print(1)",
        "requirements": "numpy==2.1.0",
        "payload": {"a": [1, "ü"]},
        "priority": 5,
        "max_attempts": 1,
        "timeout": 2.5,
        "run_at": "2026-01-31T12:00:00+02:00",
        "tenant": "t",
        "idempotency_key": "k",
        "webhook": "https://hooks.example.com/done",
        "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
    }
    ((one,), several) = parse_tasks(json.dumps(body, ensure_ascii=False).encode(), None)
    task = one.task(None)
    assert not several
    assert json.loads(task.payload or "") == body["payload"]
    assert task.run_at == dt.datetime(2026, 1, 31, 10, tzinfo=dt.UTC)
    for name in body.keys() - {"payload", "run_at"}:
        assert getattr(task, name) == body[name], name


@pytest.mark.parametrize("body", ['[{"code":"a"},{"code":"b"}]', '{"tasks":[{"code":"a"},{"code":"b"}]}'])
def test_several_tasks_come_as_a_list_or_under_their_name(body: str) -> None:
    tasks, several = parse_tasks(body.encode(), None)
    assert several
    assert [task.code for task in tasks] == ["a", "b"]


@pytest.mark.parametrize(
    ("given_payload", "kept"),
    [
        ("null", "null"),
        ("12345678901234567890123456789", "12345678901234567890123456789"),
        ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
        ('"1e999 in a text is a text"', '"1e999 in a text is a text"'),
        ('{"a": "\\"1e999", "b":1e300}', '{"a": "\\"1e999", "b":1e300}'),
        (r'"\\u0000"', r'"\\u0000"'),
        ("[" * 500 + "]" * 500, "[" * 500 + "]" * 500),
    ],
)
def test_a_payload_is_kept_as_it_came(given_payload: str, kept: str) -> None:
    ((task,), _) = parse_tasks(f'{{"code":"x","payload": {given_payload} }}'.encode(), None)
    assert task.payload == kept


def test_no_payload_is_not_a_payload_of_null() -> None:
    ((task,), _) = parse_tasks(b'{"code":"x"}', None)
    assert task.payload is None


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "the body is no JSON: Input data was truncated"),
        ("{", "the body is no JSON"),
        ("{'code': 1}", "the body is no JSON"),
        (b"\xff", "the body is no JSON"),
        (b'{"code":"\xff"}', "the body is no JSON: it is not UTF-8"),
        (b'{"code":"x","payload":"\xff"}', "the body is no JSON: it is not UTF-8"),
        ('{"code":"x","payload":NaN}', "the body is no JSON"),
        ('{"code":"x","payload":"\\ud800"}', "the body is no JSON"),
        ('{"code":"\\udc00 abcdefg"}', "the body is no JSON"),
        ('{"code":"x"} {}', "the body is no JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"code":"x","payload":' + "[" * 100_000, "nested too deeply"),
        ("5", "the whole: 5 was given; allowed: an object"),
        ("[5]", "[0]: 5 was given; allowed: an object"),
        ('{"tasks":[[]]}', "tasks[0]: [] was given; allowed: an object"),
        ('{"tasks":{}}', "tasks: {} was given; allowed: an array of tasks"),
        ('{"tasks":[],"x":1}', "x: a value was given; allowed: only name"),
        ('{"tasks":[],"code":"x"}', 'code: "x" was given; allowed: tasks alone'),
        ("[]", "the whole: none, or too many was given; allowed: from 1 to 1000 tasks in a request"),
        ("{}", "the whole: nothing was given; allowed: code, the text of a script, or code_id"),
        (f'{{"code":"x","code_id":"{CODE_ID}"}}', "the whole: code, code_id was given; allowed: code, the text"),
        (f'{{"code_id":"{CODE_ID}","requirements":"a==1"}}', "requirements only with code"),
        ('{"code":1}', "code: 1 was given; allowed: a valid string"),
        ('{"code":"x","name":{"a":1}}', 'name: {"a":1} was given; allowed: a valid string'),
        ('{"code":"a\\u0000"}', 'code: "a\\u0000" was given; allowed: a text without the character NUL'),
        ('{"code":"x","payload":{"a":"\\u0000"}}', "payload: the escape \\u0000 was given"),
        ('{"code":"x","payload":[1,-1.5e0400,"1e999"]}', "payload: 1.5e0400 was given; allowed: numbers up to 1.7e308"),
        ('{"code":"x","priority":2147483648}', "priority: 2147483648 was given; allowed: less than 2147483648"),
        ('{"code":"x","priority":true}', "priority: true was given; allowed: a valid integer"),
        ('{"code":"x","priority":1.5}', "priority: 1.5 was given; allowed: a valid integer"),
        ('{"code":"x","priority":' + "9" * 50 + "}", "priority: 99999"),
        ('{"code":"x","max_attempts":0}', "max_attempts: 0 was given; allowed: greater than or equal to 1"),
        ('{"code":"x","timeout":0}', "timeout: 0 was given; allowed: greater than 0"),
        ('{"code":"x","timeout":1e999}', "timeout: 1e999 was given; allowed: a finite number"),
        ('{"code":"x","run_at":"2026-01-31"}', 'run_at: "2026-01-31" was given; allowed: a time with its zone'),
        ('{"code":"x","run_at":"2026-02-30T00:00:00Z"}', "allowed: a time with its zone, such as"),
        ('{"code":"x","run_at":"9999-12-31T23:59:59-23:59"}', "before the year 9999"),
        ('{"code":"x","run_at":1}', "run_at: 1 was given; allowed: a time with its zone"),
        ('{"code":"x","requirements":"numpy"}', "'numpy' is not pinned; use numpy==VERSION"),
        ('{"code_id":"7"}', 'code_id: "7" was given; allowed: a UUID'),
        ('{"code":"x","tenant":"' + "x" * 256 + '"}', "… was given; allowed: at most 255 characters"),
        ('{"code":"x","idempotency_key":""}', 'idempotency_key: "" was given; allowed: at least 1 character'),
        ('{"code":"x","webhook":"file:///etc"}', "allowed: a URL to deliver to; this is no URL to deliver to"),
        ('{"code":"x","traceparent":"x"}', 'traceparent: "x" was given; allowed: '),
        ('{"code":"x","color":"red"}', "color: a value was given; allowed: only name, description, code, code_id"),
    ],
)
def test_what_cannot_be_used_is_named_with_what_is_allowed(body: bytes | str, said: str) -> None:
    assert said in refusal(body)


def test_every_problem_of_every_task_is_told_but_not_thousands() -> None:
    told = refusal('{"tasks":[{"code":1,"priority":"high"},{"code":"x"},{"code":"x","timeout":-1}]}').splitlines()
    assert [line.split(":")[0] for line in told] == ["tasks[0].code", "tasks[0].priority", "tasks[2].timeout"]
    told = refusal(json.dumps([{"code": 1}] * 100)).splitlines()
    assert len(told) == 21
    assert told[-1] == "and 80 more"


def test_there_is_a_most_of_tasks() -> None:
    tasks, _ = parse_tasks(json.dumps([{"code": "x"}] * MOST_TASKS).encode(), None)
    assert len(tasks) == MOST_TASKS
    assert "allowed: from 1 to 1000 tasks" in refusal(json.dumps([{"code": "x"}] * (MOST_TASKS + 1)))


def test_a_time_that_is_long_past_is_as_good_as_now() -> None:
    ((task,), _) = parse_tasks(b'{"code":"x","run_at":"0001-01-01T00:00:00+23:59"}', None)
    assert task.run_at == dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def test_the_key_of_the_header_is_the_task_s() -> None:
    ((task,), _) = parse_tasks(b'{"code":"x"}', "k")
    assert task.idempotency_key == "k"
    ((task,), _) = parse_tasks(b'{"code":"x","idempotency_key":"k"}', "k")
    assert task.idempotency_key == "k"
    assert "the same key as in the header" in refusal('{"code":"x","idempotency_key":"j"}', "k")
    assert "a key in each task of several" in refusal('{"tasks":[{"code":"x"}]}', "k")
    assert "a key in each task of several" in refusal('[{"code":"x"}]', "k")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)


@given(JSON, st.booleans())
@settings(max_examples=200, derandomize=True, deadline=None)
def test_every_payload_arrives_or_is_refused_by_name(payload: object, escaped: bool) -> None:
    text = json.dumps({"code": "x", "payload": payload}, ensure_ascii=escaped)
    try:
        ((task,), _) = parse_tasks(text.encode(errors="replace"), None)
    except Refusal:
        assert "\\u0000" in text
        return
    assert json.loads(task.payload or "") == payload
    check_new_tasks([task.task(None)])


@given(
    st.dictionaries(st.sampled_from(["code", "name", "priority", "timeout", "run_at", "tenant", "payload", "x"]), JSON)
)
@settings(max_examples=200, derandomize=True, deadline=None)
def test_whatever_is_taken_the_database_takes_too(fields: dict[str, object]) -> None:
    try:
        tasks, _ = parse_tasks(json.dumps(fields).encode(), None)
    except Refusal:
        return
    check_new_tasks([task.task(None) for task in tasks])


@pytest.mark.parametrize(
    ("model", "query", "said"),
    [
        (SearchQuery, "limit=0", "limit: 0 was given; allowed: greater than or equal to 1"),
        (SearchQuery, "limit=1&limit=2", "allowed: it once"),
        (SearchQuery, "limit=٣", "limit: "),
        (SearchQuery, "status=done", "status: "),
        (SearchQuery, "since=yesterday", "since: yesterday was given; allowed: a time with its zone"),
        (SearchQuery, "text=%00", "without the character NUL"),
        (SearchQuery, "colour=red", "colour: red was given; allowed: only text, status"),
        (WaitQuery, "seconds=61", "seconds: 61 was given; allowed: less than or equal to 60"),
        (WaitQuery, "seconds=nan", "seconds: nan was given"),
        (LogsQuery, "follow=yes", "follow: yes was given; allowed: a valid boolean"),
        (CodesQuery, "after=x", "after: x was given"),
        (TaskPath, "id=0", "id: 0 was given"),
        (TaskPath, f"id={2**63}", "id: 9223372036854775808 was given"),
        (TaskPath, "id=1_0", "id: 1_0 was given"),
    ],
)
def test_parameters_that_cannot_be_used_are_named(model: type[Input], query: str, said: str) -> None:
    with pytest.raises(Refusal) as caught:
        parse_query(MultiDict(parse_qsl(query)), model)
    assert said in str(caught.value)


def test_parameters_are_read_from_texts() -> None:
    query = parse_query(
        MultiDict([("status", "failed"), ("status", "pending"), ("since", "1h"), ("limit", "7")]), SearchQuery
    )
    assert (query.status, query.limit, query.before) == (["failed", "pending"], 7, None)
    assert query.since is not None
    assert abs(dt.datetime.now(dt.UTC) - query.since - dt.timedelta(hours=1)) < dt.timedelta(seconds=60)
    assert parse_query(MultiDict([("seconds", "1.5")]), WaitQuery).seconds == 1.5
    assert parse_query(MultiDict([("follow", "false")]), LogsQuery).follow is False
