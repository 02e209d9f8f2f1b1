"""Plain functions that are shipped: what goes with them, what is refused and why, and what comes back. Run for real."""

from __future__ import annotations

import collections
import datetime as dt
import functools
import json
import math
import os.path
import subprocess
import sys
import textwrap
import xml.etree.ElementTree
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from math import pi
from pathlib import Path
from random import randint
from typing import TYPE_CHECKING, Any, Literal, assert_type

import pydantic
import pytest
from trio.testing import MockClock

import continuum
from continuum.client.functions import Function, RemoteFunction, Shippable, is_plain_json
from continuum.client.mapping import Results
from continuum.client.shipping import check_function, ship
from continuum.client.trio_client import Client
from continuum.db.errors import InvalidTask
from continuum.db.memory import MemoryDatabase
from tests.support import scripts as own_module
from tests.support.harness import worker
from tests.support.scripts import ScriptBackend, ScriptHost, script_host

if TYPE_CHECKING:
    from decimal import Decimal

RATE = 0.25
not_yet: int


@pytest.fixture(scope="module")
def host() -> Iterator[ScriptHost]:
    with script_host() as made:
        yield made


@pytest.fixture
def database() -> MemoryDatabase:
    return MemoryDatabase()


@pytest.fixture
async def c(database: MemoryDatabase, host: ScriptHost) -> AsyncIterator[Client]:
    async with Client(database=database) as client, worker(database, ScriptBackend(host)):
        yield client


def run_here(host: ScriptHost, function: Callable[..., Any], *args: object, **kwargs: object) -> Any:
    """What a function returns in an interpreter of its own."""
    shippable = Shippable(function, {})
    program = shippable.script.text + "\nprint(__import__('json').dumps(result, default=str))\n"
    ended = host.run(program, json.dumps(shippable.payload(args, kwargs)))
    assert ended.exit_code == 0, ended.stderr
    return json.loads(ended.stdout)


# -- what a function may be and use ------------------------------------------------------------------------------------


def area(width: float, height: float = 2.0, *more: float, scale: float = 1.0, **named: float) -> float:
    return (width * height + sum(more) + sum(named.values())) * scale


@dataclass
class Point:
    x: int
    y: int = 0


def factorial(n: int) -> int:
    return 1 if n < 2 else n * factorial(n - 1)


def with_modules(text: str) -> list[Any]:
    tree = xml.etree.ElementTree.fromstring(text)
    counted = Counter(child.tag for child in tree)
    assert math.floor(pi) == 3
    assert 0 < randint(1, 2) < 3
    assert os.path.join("a", "b") == "a/b"
    assert collections.OrderedDict(a=1) == {"a": 1}
    return [dict(counted), Path("/a/b").name, dt.date(2026, 1, 2).isoformat()]


def with_a_scope_of_its_own(names: list[str]) -> dict[str, Decimal]:
    import decimal

    @functools.lru_cache(maxsize=9)
    def length(name: str) -> Decimal:
        return decimal.Decimal(len(name))

    class Kept:
        rate: Nonsense = 3  # type: ignore[name-defined]  # noqa: F821 - not evaluated

        def of(self, name: str) -> int:
            return int(length(name)) * self.rate  # type: ignore[no-any-return]

    found: Missing  # type: ignore[name-defined]  # noqa: F821
    found = {name: Kept().of(name) for name in names}
    assert sorted(found, key=lambda name: (len(name), name))
    return found  # type: ignore[no-any-return]


def with_a_text() -> str:
    return """
not indented
    indented"""


def test_what_a_function_does_here_it_does_there(host: ScriptHost) -> None:
    for arguments, keywords in (
        ((3,), {}),
        ((3, 4), {}),
        ((3, 4, 5, 6), {"scale": 2}),
        ((3,), {"height": 5, "other": 7}),
    ):
        assert run_here(host, area, *arguments, **keywords) == area(*arguments, **keywords)
    assert run_here(host, factorial, 10) == factorial(10)
    assert run_here(host, with_a_text) == with_a_text()
    xml_text = "<a><b/><b/><c/></a>"
    assert run_here(host, with_modules, xml_text) == with_modules(xml_text)
    assert run_here(host, with_a_scope_of_its_own, ["ab", "c"]) == {"ab": 6, "c": 3}


def test_a_function_within_another_keeps_its_texts_and_modules(host: ScriptHost) -> None:
    import string

    def nested(n: int) -> list[str]:
        text = """
left
  right"""
        return [text, string.ascii_letters[:n]]

    assert run_here(host, nested, 2) == ["\nleft\n  right", "ab"]


def test_functions_that_have_the_names_of_what_calls_them(host: ScriptHost) -> None:
    def result(payload: int) -> int:
        return payload + 1

    def payload(json: int) -> int:
        return json + 2

    assert run_here(host, result, 1) == 2
    assert run_here(host, payload, 1) == 3


def test_equal_functions_are_equal_scripts() -> None:
    one, other = (ship(check_function(function), None).text for function in (area, area))
    assert one == other
    assert "width" in one
    assert "tests" not in one, "no path of the producer's"


# -- what is refused ---------------------------------------------------------------------------------------------------


def refusal(function: object) -> str:
    with pytest.raises(continuum.NotShippable) as caught:
        _ = Shippable(function, {}).script  # type: ignore[arg-type]
    return str(caught.value)


async def asynchronous() -> int:
    return 1


def generating() -> Iterator[int]:
    yield 1


class Holder:
    def method(self) -> int:
        return 1

    @staticmethod
    def static() -> int:
        return 1


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda: 1, "a lambda has no name"),
        (asynchronous, "asynchronous is async"),
        (generating, "generating yields: return a list"),
        (Holder().method, "Holder.method is a method"),
        (Holder.method, "Holder.method is a method"),
        (Holder.static, "Holder.static is a method"),
        (Holder, "Holder is no plain function, but a type"),
        (len, "len is no plain function"),
        (functools.partial(area, 1), "no plain function, but a partial"),
        (functools.lru_cache(area), "area is no plain function"),
        (functools.wraps(area)(lambda: 1), "is wrapped by another decorator"),
        (7, "7 is no plain function, but a int"),
    ],
)
def test_what_is_no_plain_function_is_refused_when_it_is_decorated(function: Any, reason: str) -> None:
    with pytest.raises(continuum.NotShippable, match=reason):
        check_function(function)
    with pytest.raises(continuum.NotShippable):
        continuum.task(function)


def decorated_twice() -> Any:
    def other(function: Any) -> Any:
        return function

    @other
    @other
    def twice() -> int:
        return 1

    return twice


def needs_much() -> Any:
    local = [1]
    unset: int

    def greedy(n: int = RATE) -> Any:  # type: ignore[assignment]
        global not_yet
        not_yet = 1
        helper(local)
        own_module.oldest_python()
        no_such_name(Point(n), unset)  # type: ignore[name-defined]  # noqa: F821

    if RATE < 0:
        unset = 1
    return greedy


def helper(values: list[int]) -> int:
    return len(values)


def test_all_that_is_not_there_is_named_at_once_with_what_to_do() -> None:
    assert refusal(needs_much()).splitlines() == [
        "needs_much.<locals>.greedy cannot be run in a sandbox as it is:",
        "- it declares `global not_yet`: a sandbox keeps nothing from one call to the next; return it instead",
        "- it uses `Point`: a function is shipped alone; define it inside the function",
        "- it uses `RATE` of its module: give it as an argument, or define it inside the function",
        "- it uses `helper`: a function is shipped alone; define it inside the function",
        "- it uses `local` of the function around it: give it as an argument, or define it inside the function",
        "- it uses `no_such_name`, which is defined nowhere: import or define it inside the function",
        "- it uses the module `tests.support.scripts`, which is your own: a sandbox does not have it",
        "- it uses `unset`, which has no value yet",
    ]


def test_other_decorators_and_sources_that_are_not_there_are_refused() -> None:
    assert "has several decorators (@other, @other)" in refusal(decorated_twice())
    made: dict[str, Any] = {}
    exec("def made():\n    return 1", made)
    assert "the source of made is not to be found" in refusal(made["made"])


def test_a_function_of_ones_own_module_that_is_imported_is_named_with_it() -> None:
    def uses() -> object:
        return script_host()

    assert "`script_host` of your own module `tests.support.scripts`: a function is shipped alone" in refusal(uses)


def test_installed_packages_are_imported() -> None:
    def uses() -> object:
        return pydantic.VERSION

    assert "import pydantic\n" in ship(check_function(uses), "pydantic==2.0").text


def test_a_script_may_be_decorated_and_run_as_a_program(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import json as j
            import continuum

            LIMIT = 3

            @continuum.task(
                timeout=5,
            )
            # a comment
            def first(n: int) -> str:
                return j.dumps(n)

            @continuum.task
            def second() -> int:
                return LIMIT

            if __name__ == "__main__":
                print(first(1), first._shippable.script.text)
                try:
                    second._shippable.script
                except continuum.NotShippable as error:
                    print(error)
            """
        )
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True)
    assert "import json as j\n\ndef first(n: int) -> str:\n    return j.dumps(n)\n" in done.stdout
    assert "uses `LIMIT` of its module" in done.stdout


# -- calling -----------------------------------------------------------------------------------------------------------


async def test_a_call_is_awaited_submitted_and_mapped(
    autojump_clock: MockClock, c: Client, database: MemoryDatabase
) -> None:
    shipped = c.task(area)
    assert_type(await shipped(3, scale=2.0), float)
    assert await shipped(3, 4) == 12.0
    task_id = await shipped.submit(5, 6)
    assert await shipped.result(task_id) == 30.0
    results: Results[Any, float] = shipped.map([1, 2, 3])
    assert await results == [2.0, 4.0, 6.0]
    assert await shipped.map([1, 2], [3, 4]) == [3.0, 8.0]
    assert [pair async for pair in shipped.map([1], [3]).as_completed()] == [((1, 3), 3.0)]
    assert shipped.local(3, 4) == 12
    assert shipped.__name__ == "area"
    assert {task.name for task in database.tasks.values()} == {"area"}
    assert len(await database.codes()) == 1, "one script for all calls"


async def test_the_decorator_takes_options_and_a_call_more(
    autojump_clock: MockClock, c: Client, database: MemoryDatabase
) -> None:
    @c.task(timeout=5, name="double", priority=3, requirements="six==1.17.0", max_attempts=1)
    def double(n: int) -> int:
        return 2 * n

    assert isinstance(double, RemoteFunction)
    assert await double.submit(1) == 1
    assert await double.with_options(tenant="acme", priority=1, idempotency_key="k").submit(2) == 2
    assert await double.with_options(tenant="acme", idempotency_key="k").submit(3) == 2
    first, second = database.tasks[1], database.tasks[2]
    assert (first.name, first.priority, first.timeout, first.tenant) == ("double", 3, 5, None)
    assert (second.name, second.priority, second.timeout, second.tenant) == ("double", 1, 5, "acme")
    code = await database.fetch_code(first.code_id or "")
    assert code is not None
    assert code.requirements == "six==1.17.0\n"


@continuum.task(max_attempts=1)
def divide(a: int, b: int) -> float:
    """Divides."""
    return a / b


async def test_a_function_without_a_client_runs_here_until_it_has_one(autojump_clock: MockClock, c: Client) -> None:
    assert isinstance(divide, Function)
    assert_type(divide(1, 2), float)
    assert divide(1, 2) == 0.5
    assert divide.__doc__ == "Divides."
    there = divide.on(c, timeout=3)
    assert await there(1, 4) == 0.25


async def test_a_failure_shows_the_functions_own_file_and_lines(autojump_clock: MockClock, c: Client) -> None:
    with pytest.raises(continuum.TaskFailed) as caught:
        await divide.on(c)(1, 0)
    line = divide._shippable.function.__code__.co_firstlineno + 3
    assert str(caught.value) == f"task 1 (divide) failed: ZeroDivisionError: division by zero [{__file__}, line {line}]"
    assert f'File "{__file__}", line {line}, in divide\n    return a / b' in caught.value.traceback
    assert "_call" not in caught.value.traceback

    if line:

        @c.task(max_attempts=1)
        def nested() -> None:
            raise KeyError("nested")

    with pytest.raises(continuum.TaskFailed) as caught:
        await nested()
    line = nested.local.__code__.co_firstlineno + 2
    assert f"line {line}, in nested" in caught.value.traceback


async def test_results_are_what_the_function_says(autojump_clock: MockClock, c: Client) -> None:
    @c.task
    def birthday(year: int) -> dt.date:
        return dt.date(year, 1, 2)

    @c.task
    def point(x: int) -> Point:
        return {"x": x, "y": 2}  # type: ignore[return-value]

    @c.task
    def pair() -> tuple[int, str]:
        return 1, "a"

    @c.task
    def nothing(x: int) -> None:
        pass

    @c.task
    def untyped(x):  # type: ignore[no-untyped-def]
        return [x]

    @c.task
    def wrong() -> int:
        return "five"  # type: ignore[return-value]

    assert_type(await birthday(2026), dt.date)
    assert await birthday(2026) == dt.date(2026, 1, 2)
    assert await point(1) == Point(1, 2)
    assert await pair() == (1, "a")
    assert await nothing(1) is None  # type: ignore[func-returns-value]
    assert await untyped({"any": "thing"}) == [{"any": "thing"}]
    with pytest.raises(continuum.BadResult, match="its result is no int"):
        await wrong()


async def test_arguments_are_checked_before_anything_is_submitted(
    autojump_clock: MockClock, c: Client, database: MemoryDatabase
) -> None:
    @c.task
    def typed(n: int, names: list[str], *more: float, on: Any = None, **rest: bool | None) -> None:
        pass

    for arguments, keywords, complaint in (
        ((), {}, "missing a required argument: 'n'"),
        (("x", []), {}, "typed: argument `n`: Input should be a valid integer"),
        ((1, ["a", 2]), {}, "argument `names`: 1: Input should be a valid string"),
        ((1, [], "x"), {}, "argument `more`: Input should be a valid number"),
        ((1, []), {"flag": "perhaps"}, "argument `flag`: Input should be a valid boolean"),
        ((1, [], 2, 3), {"nonsense": 1, "n": 2}, "multiple values for argument 'n'"),
    ):
        with pytest.raises(TypeError, match=complaint):
            await typed(*arguments, **keywords)
    with pytest.raises(InvalidTask, match="payload is not JSON: Object of type date"):
        await typed(1, [], on=dt.date(2026, 1, 2))
    assert database.tasks == {}


@pytest.mark.parametrize(
    ("kind", "plain"),
    [
        (int, True), (str | None, True), (list[dict[str, float]], True), (Literal["a", 1], True), (dict, True), (Any, True),
        (dt.date, False), (dict[int, str], False), (tuple[int, int], False), (set[int], False), (Point, False),
        (list[dt.date], False), (Callable[[], int], False),
    ],
)  # fmt: skip
def test_only_types_that_json_has_are_checked(kind: object, plain: bool) -> None:
    assert is_plain_json(kind) == plain


async def test_return_types_that_cannot_be_checked_are_refused_at_the_call(
    autojump_clock: MockClock, c: Client
) -> None:
    @c.task
    def unknown() -> Decimal:
        return 1  # type: ignore[return-value]

    @c.task
    def unchecked() -> Holder:
        return 1  # type: ignore[return-value]

    with pytest.raises(continuum.NotShippable, match="returns 'Decimal', which is not to be found"):
        await unknown()
    with pytest.raises(TypeError, match="Holder is no type that a result can be checked for"):
        await unchecked()


def test_the_blocking_twin_calls_as_any_function(database: MemoryDatabase, host: ScriptHost) -> None:
    from tests.unit.test_client_blocking import blocking

    with blocking(database, host) as c:
        double = c.task(area)
        assert double(3) == 6.0
        assert list(double.map([1, 2])) == [2.0, 4.0]
        assert double.result(double.submit(4)) == 8.0
        assert double.with_options(tenant="t")(1) == 2.0
        assert divide.on(c)(1, 2) == 0.5
        failures = list(divide.on(c).map([1], [0], return_failures=True))
        assert isinstance(failures[0], continuum.TaskFailed)
