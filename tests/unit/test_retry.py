"""Retry policies: what can be said, and what comes of whatever a row may hold."""

from __future__ import annotations

import json
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from continuum.retry import (
    LONGEST_DELAY,
    BadPolicy,
    Cause,
    RetryPolicy,
    attempts_of,
    judge,
    parse_policy,
    policy_schema,
    policy_text,
)

seconds = st.floats(0, LONGEST_DELAY)
policies = st.builds(
    RetryPolicy,
    max_attempts=st.none() | st.integers(1, 2**31 - 1),
    base=st.floats(1e-9, LONGEST_DELAY),
    factor=st.floats(1, 100),
    cap=seconds,
    delays=st.lists(seconds, max_size=5).map(tuple),
    jitter=st.floats(0, 1),
    on=st.lists(st.sampled_from([*Cause]) | st.integers(1, 255) | st.just("64-78"), max_size=4).map(tuple),
)


def test_a_whole_number_may_be_written_with_a_point() -> None:
    """JSON has one kind of numbers, and whoever writes it may not know another."""
    assert parse_policy('{"max_attempts": 3.0, "on": [75.0]}') == RetryPolicy(max_attempts=3, on=(75,))


def test_without_a_policy_the_wait_doubles_up_to_a_cap_and_is_never_the_same_for_all() -> None:
    policy = RetryPolicy()
    assert [policy.delay(n, 0) for n in (1, 2, 3, 4)] == [1, 2, 4, 8]
    assert policy.delay(50, 0) == 300
    assert policy.delay(1, -1) < 1 < policy.delay(1, 1)
    assert judge(None, 3, 3, Cause.EXIT, 1).retry_in is None


def test_a_list_of_delays_ends_with_the_one_that_is_used_from_there_on() -> None:
    policy = RetryPolicy(delays=(5, 30, 600))
    assert [policy.delay(n, 0) for n in (1, 2, 3, 4, 99)] == [5, 30, 600, 600, 600]


@given(policies, st.integers(1, 2**31 - 1), st.floats(-1, 1))
def test_a_delay_is_never_negative_and_never_beyond_its_bounds(policy: RetryPolicy, tried: int, luck: float) -> None:
    longest = max(policy.delays) if policy.delays else policy.cap
    assert 0 <= policy.delay(tried, luck) <= longest * (1 + policy.jitter) <= 2 * LONGEST_DELAY


@given(policies)
def test_a_policy_survives_its_way_through_the_database(policy: RetryPolicy) -> None:
    assert parse_policy(json.dumps(json.loads(policy_text(policy)))) == policy


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*RetryPolicy.__struct_fields__, "x"]), inner),
    max_leaves=6,
)  # fmt: skip


@given(anything.map(json.dumps) | st.text(), st.integers(1, 5), st.sampled_from([*Cause]))
def test_whatever_a_row_holds_there_is_a_verdict(text: str, tried: int, cause: Cause) -> None:
    verdict = judge(text, 3, tried, cause, 1 if cause is Cause.EXIT else None)
    assert verdict.retry_in is None or verdict.retry_in >= 0
    assert attempts_of(text, 3) >= 1


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"base": "soon"}', "base: Expected `float`"),
        ('{"delays": [1, -1]}', "delays[1]: Expected `float` >= 0.0"),
        ('{"factor": 0.5}', "factor: Expected `float` >= 1"),
        ('{"cap": 1e9}', "cap: Expected `float` <= 2592000.0"),
        ('{"on": ["oom"]}', "on: 'oom' is none of exit, timeout, memory, engine"),
        ('{"on": [256]}', "on: 256 is none of"),
        ('{"max_attempts": 0}', "max_attempts: Expected `int` >= 1"),
        ('{"attempts": 3}', "unknown field `attempts`"),
        ("[]", "Expected `object`, got `array`"),
        ("{", "it is no JSON"),
        ("[" * 100_000, "at most 10000"),
    ],
)
def test_what_is_wrong_with_a_policy_is_said_with_its_field(text: str, named: str) -> None:
    with pytest.raises(BadPolicy, match=re.escape(named)):
        parse_policy(text)
    assert named in judge(text, 3, 1, Cause.TIMEOUT).note


def test_values_that_no_policy_can_have_are_refused_before_they_are_stored() -> None:
    for bad in (RetryPolicy(base=float("inf")), RetryPolicy(jitter=3)):
        with pytest.raises(BadPolicy):
            policy_text(bad)
    with pytest.raises(ValueError, match="none of exit, timeout"):
        RetryPolicy(on=("exit", 5.5))  # type: ignore[arg-type]


def test_the_schema_names_every_field() -> None:
    schema = policy_schema()
    assert set(schema["properties"]) == set(RetryPolicy.__struct_fields__)
    msgspec.json.encode(schema)
