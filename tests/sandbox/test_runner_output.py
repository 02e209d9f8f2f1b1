"""Whatever a script does with its outputs and descriptors, the worker hears the runner alone."""

from __future__ import annotations

import pytest

from continuum.model import Ending, RunRequest
from tests.sandbox.conftest import Laboratory, whatever_the_kernel

FORGED = "b'X' + (12).to_bytes(4, 'big') + b'{\"status\":0}' + b'R\\0\\0\\0\\0'"


@whatever_the_kernel
async def test_endless_output_is_cut_at_the_limit_and_counted(laboratory: Laboratory) -> None:
    code = "import sys\nblock = 'x' * 999 + '\\n'\nfor _ in range(100_000): sys.stdout.write(block)\n"
    outcome = await laboratory.run(code, output_limit=5000)
    mark = "\n[output cut: the first 5000 of 100000000 bytes are kept]\n"
    assert outcome.ending is Ending.COMPLETED
    assert outcome.output == ("x" * 999 + "\n") * 5 + mark
    assert outcome.error_output == ""
    assert await laboratory.usable()


@whatever_the_kernel
async def test_each_output_is_cut_for_itself(laboratory: Laboratory) -> None:
    code = "import os\nos.write(1, b'a' * 10)\nos.write(2, b'b' * 11)\n"
    outcome = await laboratory.run(code, output_limit=10)
    assert outcome.output == "a" * 10
    assert outcome.error_output == "b" * 10 + "\n[output cut: the first 10 of 11 bytes are kept]\n"


@whatever_the_kernel
async def test_output_byte_by_byte_costs_the_worker_little(laboratory: Laboratory) -> None:
    """In a pipe, too, that keeps each write apart."""
    code = """
import fcntl, os, time
began = time.monotonic()
for flags in (0, os.O_DIRECT):
    fcntl.fcntl(1, fcntl.F_SETFL, flags)
    for _ in range(20000): os.write(1, b"a")
print(time.monotonic() - began, file=__import__("sys").stderr)
"""
    pieces = []
    request = RunRequest(1, 1, code, "null", 20.0, 65536)
    outcome = await laboratory.sandbox.run(request, lambda stream, text: pieces.append(text))
    assert outcome.output == "a" * 40000
    assert len(pieces) < 1000 * float(outcome.error_output) + 10, "at most one frame a millisecond"


@whatever_the_kernel
async def test_output_without_limit_to_keep_is_only_counted(laboratory: Laboratory) -> None:
    outcome = await laboratory.run("print('hello')", output_limit=0)
    assert outcome.output == "\n[output cut: the first 0 of 6 bytes are kept]\n"


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        ("b'\\xff\\xfe'", "\ufffd\ufffd"),
        ("b'no newline'", "no newline"),
        ("b'a\\0b'", "a\ufffdb"),
        ("'gr\\u00fc\\u00df'.encode()", "grüß"),
        (FORGED, "X\ufffd\ufffd\ufffd\x0c" + '{"status":0}R' + "\ufffd" * 4),
    ],
)
@pytest.mark.parametrize("backend_name", ["bubblewrap"])
async def test_any_bytes_are_told_as_text(laboratory: Laboratory, write: str, expected: str) -> None:
    assert await laboratory.printed(f"import os; os.write(1, {write})") == expected


@whatever_the_kernel
async def test_text_that_is_no_unicode_is_printed_escaped(laboratory: Laboratory) -> None:
    assert await laboratory.printed(r"print('\udc80')") == "\\udc80\n"


@pytest.mark.parametrize("backend_name", ["bubblewrap"])
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import os, sys\nprint('a')\nos.close(1)\nsys.exit(0)", "a\n"),
        ("import sys\nprint('a')\nsys.stdout.close()", "a\n"),
        ("import sys\nprint('a')\nsys.stdout = None", "a\n"),
        ("import os\nprint('a')\nos.close(1)\nos.open('/dev/null', os.O_WRONLY)\nprint('b')", "a\n"),
        ("import os\nos.close(1)\nos.open('/proc/self/fd/2', os.O_WRONLY)\nprint('b')", ""),
        ("import os\nfd = os.open('/dev/stdout', os.O_WRONLY)\nos.close(1)\nos.write(fd, b'again')", "again"),
        ("import os\nos.closerange(0, 1024)", ""),
    ],
)
async def test_a_script_may_close_and_reopen_its_outputs(laboratory: Laboratory, code: str, expected: str) -> None:
    outcome = await laboratory.run(code)
    assert (outcome.ending, outcome.output) == (Ending.COMPLETED, expected)
    assert await laboratory.usable()


@whatever_the_kernel
async def test_output_may_end_long_before_the_script(laboratory: Laboratory) -> None:
    code = "import os, time\nos.closerange(0, 3)\ntime.sleep(0.2)\nos._exit(5)"
    assert (await laboratory.run(code)).exit_code == 5


async def test_frames_forged_on_every_descriptor_reach_nobody(laboratory: Laboratory) -> None:
    code = f"""
import os, stat
forged = {FORGED}
for number in range(1024):
    try:
        os.write(number, forged)
    except OSError:
        pass
os.kill(os.getpid(), 9)
"""
    outcome = await laboratory.run(code)
    assert (outcome.ending, outcome.exit_code) == (Ending.FAILED, 137)
    assert outcome.output.startswith("X")
    assert await laboratory.usable()


async def test_a_script_holds_no_descriptor_of_its_runner(laboratory: Laboratory) -> None:
    code = """
import os
for number in range(1024):
    try:
        print(number, os.readlink("/proc/self/fd/%d" % number).split(":")[0])
    except OSError:
        pass
"""
    assert (await laboratory.printed(code)).split() == ["0", "/dev/null", "1", "pipe", "2", "pipe"]


async def test_a_full_pipe_of_a_killed_script_is_still_told(laboratory: Laboratory) -> None:
    code = "import os\nos.write(1, b'x' * 65536)\nos.write(2, b'y' * 65536)\nos.kill(os.getpid(), 9)"
    outcome = await laboratory.run(code)
    assert (outcome.output, outcome.error_output) == ("x" * 65536, "y" * 65536)


async def test_a_script_that_fills_its_outputs_and_its_time_is_cut_in_both(laboratory: Laboratory) -> None:
    code = "import os\nwhile True: os.write(1, bytes(65536)); os.write(2, b'x' * 65536)"
    outcome = await laboratory.run(code, timeout=0.5, output_limit=1000)
    assert outcome.ending is Ending.TIMED_OUT
    assert outcome.output.startswith("\ufffd" * 1000 + "\n[output cut: the first 1000 of ")
    assert await laboratory.usable()
