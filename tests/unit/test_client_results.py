"""What becomes of a script's result: printed by the epilogue, on the oldest Python that a sandbox may have, and read back."""

from __future__ import annotations

import ast
import datetime as dt
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import TypedDict

from continuum.client.errors import BadResult
from continuum.client.results import NOT_GIVEN, decoder, last_line
from continuum.client.sources import EPILOGUE, as_path, printing_result
from continuum.model import Status, TaskRecord
from tests.support.scripts import ScriptHost, script_host


@pytest.fixture(scope="module")
def host() -> Iterator[ScriptHost]:
    with script_host() as made:
        yield made


def record(**values: object) -> TaskRecord:
    fields: dict[str, object] = dict.fromkeys(TaskRecord.__slots__)
    return TaskRecord(**fields | {"id": 17, "name": "", "status": Status.COMPLETED} | values)  # type: ignore[arg-type]


def result_of(host: ScriptHost, script: str, returns: object = NOT_GIVEN) -> Any:
    """What a client gets that runs a script."""
    ended = host.run(printing_result(script))
    assert ended.exit_code == 0, ended.stderr
    return decoder(returns)(record(output=ended.stdout, error_output=ended.stderr))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


# -- the epilogue ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(value=json_values, before=st.text(), ended=st.sampled_from(["", "\n", "\n\n  ", " \t", "\n{"]))
def test_any_json_comes_back_whatever_was_printed_before(host: ScriptHost, value: Any, before: str, ended: str) -> None:
    script = f"print({before!r}, end={ended!r})\nresult = {value!r}"
    assert result_of(host, script) == value


@pytest.mark.parametrize(
    "script",
    [
        "result = 5",
        "result = 5  # a comment",
        "result = 5;",
        "result = 5\n# a comment without an end",
        "result = 5\r\n",
        "result = 5\r",
        "result = 5\n\f",
        "result = 5\n    ",
        "if True:\n    result = 5",
        "def work():\n    global result\n    result = 5\n\nif __name__ == '__main__':\n    work()",
        "from __future__ import annotations\n\nresult: Nonsense = 5",
        "'''A docstring.'''\nresult = 5",
        "# -*- coding: latin-1 -*-\nresult = 5",
        "#!/usr/bin/env python3\nresult = 5",
        "globals()['result'] = 5",
        "class result_of:\n    value = 5\nresult = result_of.value",
        "list = set = str = dict = type = getattr = hasattr = isinstance = open = print = None\nresult = 5",
        "json = sys = io = builtins = None\nresult = 5",
        "import io, sys\nsys.stdout = io.StringIO()\nprint('hidden')\nresult = 5",
        "import sys\nsys.stdout.close()\nresult = 5",
        "import sys\nsys.stdout = sys.stderr = None\nresult = 5",
        "import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.detach(), encoding='ascii')\nprint(1, end='')\nresult = 5",
        "x = 1\nresult = x \\\n    + 4",
        "import sys\nif len(sys.argv) > 9:\n    sys.exit(1)\nresult = 5",
        "raise_it = None\ntry:\n    result = 5\nfinally:\n    pass",
    ],
)
def test_a_result_comes_back_from_scripts_of_every_shape(host: ScriptHost, script: str) -> None:
    assert result_of(host, script) == 5


@pytest.mark.parametrize(
    "script",
    [
        "result = 5\nif True:",
        "result = 5\nx = (",
        "result = 5\nx = [1",
        "result = 5\nx = {1",
        "result = 5\nx = '''abc",
        'result = 5\nx = """abc',
        "result = 5\nx = 1 \\",
        "result = 5\nx = 1 \\\n",
        "result = 5\n@property",
        "result = 5\n@property\n",
        "result = 5\ntry:\n    pass",
        "result = 5\nasync \\",
        "result = 5\nif True: \\",
        "result = 5\n\\",
        "result = 5\n  \\\n",
        "result = 5\nx = lambda",
        "result = 5\ndef f():",
    ],
)
def test_a_script_that_ends_too_early_stays_wrong(host: ScriptHost, script: str) -> None:
    ended = host.run(printing_result(script))
    assert ended.exit_code == 1
    assert "Error" in ended.stderr
    assert ended.stdout == ""


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab=:#'\"\\\n\r\t ()[]{}@;,if1+", max_size=12))
def test_no_end_of_a_script_becomes_right_by_what_follows_it(text: str) -> None:
    def is_right(script: str) -> bool:
        try:
            compile(script, "script.py", "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            return False
        return True

    script = f"result = 5\n{text}"
    assert is_right(printing_result(script)) == is_right(script)


def test_lines_keep_their_numbers(host: ScriptHost) -> None:
    ended = host.run(printing_result("result = 1\n\n\nraise ValueError('here')"))
    assert 'script.py", line 4, in <module>' in ended.stderr
    assert "raise ValueError('here')" in ended.stderr


@pytest.mark.parametrize(
    ("script", "result"),
    [
        ("import datetime as d\nresult = [d.date(2026, 1, 2)]", ["2026-01-02"]),
        ("import datetime as d\nresult = d.datetime(2026, 1, 2, 3)", "2026-01-02T03:00:00"),
        ("from decimal import Decimal\nresult = Decimal('1.50')", "1.50"),
        ("import uuid\nresult = {'id': uuid.UUID(int=1)}", {"id": "00000000-0000-0000-0000-000000000001"}),
        ("from pathlib import Path\nresult = Path('/tmp/x')", "/tmp/x"),
        ("import enum\nclass Colour(enum.Enum):\n    RED = 'red'\nresult = Colour.RED", "red"),
        ("result = {3}", [3]),
        ("result = (1, (2,))", [1, [2]]),
        (
            "import dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int\n    y: list\nresult = P(1, [P(2, [])])",
            {"x": 1, "y": [{"x": 2, "y": []}]},
        ),
        (
            "from collections import OrderedDict, namedtuple\nresult = OrderedDict(a=namedtuple('P', 'x')(1))",
            {"a": [1]},
        ),
        ("result = None", None),
        ("result = '\\ud800 \\u2028 \\x85 \\x1c end '", "\ud800 \u2028 \x85 \x1c end "),
    ],
)
def test_what_is_nearly_json_becomes_it(host: ScriptHost, script: str, result: object) -> None:
    assert result_of(host, script) == result


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("result = object()", "a object is no JSON"),
        ("result = float('nan')", "Out of range float"),
        ("result = []\nresult.append(result)", "Circular reference"),
        ("result = {(1, 2): 3}", "keys must be str"),
        ("def result():\n    pass", "a function is no JSON"),
        ("import datetime\nresult = datetime.date", "isoformat"),
        ("class Odd:\n    def tolist(self):\n        raise KeyError('two\\nlines')\nresult = Odd()", "two"),
    ],
)
def test_a_result_that_cannot_be_json_leaves_the_task_completed_and_says_why(
    host: ScriptHost, script: str, complaint: str
) -> None:
    with pytest.raises(BadResult, match=complaint) as caught:
        result_of(host, script + "\nprint('[1]')")
    assert "returns=None" in str(caught.value)
    assert caught.value.status == Status.COMPLETED
    assert result_of(host, script, returns=None) is None


def test_a_script_that_names_no_result_is_shipped_as_it_is() -> None:
    assert printing_result("results = 5\nprint(results)") == "results = 5\nprint(results)"


def test_one_that_leaves_before_its_end_prints_it_itself(host: ScriptHost) -> None:
    assert result_of(host, "import sys\nresult = 5\nprint('[6]')\nsys.exit()") == [6]


def test_a_module_of_the_same_file_prints_nothing(host: ScriptHost) -> None:
    script = "import runpy, sys\nresult = 5\nif __name__ == '__main__':\n    runpy.run_path(__file__, run_name='__mp_main__')"
    assert host.run(printing_result(script)).stdout == "\n5\n"


def test_the_epilogue_is_for_python_3_8_in_ascii() -> None:
    ast.parse(EPILOGUE, feature_version=(3, 8))
    assert EPILOGUE.isascii()
    assert "'''" not in EPILOGUE
    assert '"""' not in EPILOGUE


# -- reading it --------------------------------------------------------------------------------------------------------


@given(value=json_values, before=st.text(), after=st.text(alphabet=" \t\r\n"))
def test_the_result_is_in_the_last_line_that_is_not_empty(value: Any, before: str, after: str) -> None:
    output = f"{before}\n{json.dumps(value, ensure_ascii=False)}{after}"
    assert decoder()(record(output=output)) == value


@pytest.mark.parametrize("output", ["", "\n\n", "Hello", "{'a': 1}", "[1", "[" * 100_000, None])
def test_without_a_type_no_result_is_none(output: str | None) -> None:
    assert decoder()(record(output=output)) is None


@given(st.text())
def test_a_last_line_has_no_end_of_a_line_in_it(text: str) -> None:
    line = last_line(text)
    assert "\n" not in line
    assert line.strip() or not text.strip()


@dataclass
class Point:
    x: int
    on: dt.date


class Total(TypedDict):
    total: float


@pytest.mark.parametrize(
    ("returns", "output", "result"),
    [
        (int, "5", 5),
        (float, "5", 5.0),
        (str, '"a"', "a"),
        (list[int], "[1, 2]", [1, 2]),
        (tuple[int, str], '[1, "a"]', (1, "a")),
        (int | None, "null", None),
        (dict[str, Point], '{"a": {"x": 1, "on": "2026-01-02"}}', {"a": Point(1, dt.date(2026, 1, 2))}),
        (Total, '{"total": 3}', {"total": 3.0}),
        (set[int], "[1, 1]", {1}),
        (Any, "[1]", [1]),
    ],
)
def test_a_result_is_what_was_asked_for(returns: object, output: str, result: object) -> None:
    assert decoder(returns)(record(output=output)) == result


@pytest.mark.parametrize(
    ("returns", "output", "complaint"),
    [
        (int, '"five"', r"task 17 completed, but its result is no int: it: Input should be a valid integer"),
        (Point, '{"x": 1}', r"its result is no Point: on: Field required"),
        (list[int], '[1, "a"]', r"its result is no list\[int\]: 1: Input should be a valid integer"),
        (int, "Hello", r"left no result, which is a global `result`, or JSON as the last line.*is 'Hello'"),
        (int, "", r"it wrote nothing"),
        (
            int,
            "1\n[output cut: the first 10 of 20 bytes are kept]",
            r"its result was lost: output cut.*raise OUTPUT_LIMIT",
        ),
        (NOT_GIVEN, "1\n[output cut: the first 10 of 20 bytes are kept]", r"its result was lost"),
    ],
)
def test_another_result_is_an_error_that_says_what_is_wrong(returns: object, output: str, complaint: str) -> None:
    with pytest.raises(BadResult, match=complaint) as caught:
        decoder(returns)(record(output=output))
    assert caught.value.record.id == 17


def test_a_type_that_nothing_can_be_is_refused_before_anything_is_submitted() -> None:
    class Odd:
        pass

    with pytest.raises(TypeError, match=r"Odd is no type that a result can be checked for"):
        decoder(Odd)


def test_nothing_is_looked_for_where_none_is_wanted() -> None:
    assert decoder(None)(record(output="[output cut: ...]")) is None
    assert replace(record(), output="1").output == "1"


# -- text or path ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "is_path"),
    [
        ("report.py", True),
        ("a folder/report.py", True),
        ("/absolute/report.py", True),
        ("print(1)", False),
        ("import report\nreport.py", False),
        ("# see report.py", False),
        ("report.pyc", False),
        ("", False),
    ],
)
def test_one_line_that_ends_in_py_is_a_path(source: str, is_path: bool) -> None:
    assert (as_path(source) is not None) == is_path
