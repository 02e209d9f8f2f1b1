"""What a script finds in a sandbox and how its ends are told: one suite, on real sandboxes of every backend."""

from __future__ import annotations

import json

import pytest
import trio

from continuum.model import Ending, RunRequest, Stream
from tests.sandbox.conftest import Laboratory, whatever_the_kernel


async def test_hello(laboratory: Laboratory) -> None:
    outcome = await laboratory.run("print('hello')")
    assert (outcome.ending, outcome.exit_code, outcome.output) == (Ending.COMPLETED, 0, "hello\n")
    assert (outcome.error_output, outcome.message) == ("", "")


async def test_a_script_finds_its_payload_and_itself_where_it_was_promised(laboratory: Laboratory) -> None:
    report = """
import getpass, json, os, sys
print(json.dumps({
    "name": __name__, "arguments": len(sys.argv), "script": sys.argv[0] == __file__,
    "main": sys.modules["__main__"].payload, "payload": payload, "file": open(sys.argv[1]).read(),
    "environment": os.environ["CONTINUUM_PAYLOAD"], "task": os.environ["CONTINUUM_TASK_ID"],
    "attempt": os.environ["CONTINUUM_ATTEMPT"], "own": os.environ["OWN"], "home": os.environ["HOME"] == os.getcwd(),
    "directory": os.listdir("."), "user": getpass.getuser(), "root": os.getuid() == 0 or os.getgid() == 0,
    "groups": os.getgroups(), "stdin": sys.stdin.read(), "code": open(__file__).read().startswith("\\nimport"),
}))
open("writable", "w").write("yes")
"""
    payload = '{"text": "grüße"}'
    found = json.loads(await laboratory.printed(report, payload=payload, environment={"OWN": "1"}))
    assert found == {
        "name": "__main__",
        "arguments": 2,
        "script": True,
        "main": payload,
        "payload": payload,
        "file": payload,
        "environment": payload,
        "task": "7",
        "attempt": "3",
        "own": "1",
        "home": True,
        "directory": [],
        "user": "sandboxuser",
        "root": False,
        "groups": [],
        "stdin": "",
        "code": True,
    }


async def test_what_many_scripts_import_is_there_for_all_but_the_first(laboratory: Laboratory) -> None:
    usual = ("csv", "dataclasses", "datetime", "decimal", "hashlib", "math", "pathlib", "typing")
    count = f"import sys; print(sum(name in sys.modules for name in {usual}))"
    await laboratory.printed(count)
    assert int(await laboratory.printed(count)) == len(usual)


@whatever_the_kernel
async def test_a_script_inherits_nothing_of_the_workers_environment(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTINUUM_SECRET", "secret")
    names = set((await laboratory.printed("import os; print(*os.environ)")).split())
    usual = {"PATH", "HOME", "USER", "LOGNAME", "LANG", "TMPDIR"}
    assert names == usual | {"CONTINUUM_TASK_ID", "CONTINUUM_ATTEMPT", "CONTINUUM_PAYLOAD"}


@whatever_the_kernel
async def test_a_traceback_shows_only_the_scripts_own_lines_and_its_last_comes_first(laboratory: Laboratory) -> None:
    outcome = await laboratory.run("def fail():\n    raise ValueError('bad')\nfail()\n")
    assert (outcome.ending, outcome.exit_code) == (Ending.FAILED, 1)
    assert outcome.message == "ValueError: bad\nexit code 1"
    lines = outcome.error_output.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert [line.strip() for line in lines if line.startswith("  File")] == [
        'File "/sandbox/task/script.py", line 3, in <module>',
        'File "/sandbox/task/script.py", line 2, in fail',
    ]
    assert "    raise ValueError('bad')" in lines


@whatever_the_kernel
async def test_a_chained_traceback_shows_only_the_scripts_own_lines(laboratory: Laboratory) -> None:
    outcome = await laboratory.run("try:\n    1 / 0\nexcept ZeroDivisionError:\n    raise KeyError('later')\n")
    assert outcome.message == "KeyError: 'later'\nexit code 1"
    assert "ZeroDivisionError" in outcome.error_output
    assert "<runner>" not in outcome.error_output


@whatever_the_kernel
async def test_a_syntax_error_is_told_without_the_runner(laboratory: Laboratory) -> None:
    outcome = await laboratory.run("x = 1\ny = (\n")
    assert (outcome.ending, outcome.exit_code) == (Ending.FAILED, 1)
    assert outcome.message.startswith("SyntaxError: ")
    assert 'script.py", line 2' in outcome.error_output
    assert "runner" not in outcome.error_output


@whatever_the_kernel
async def test_code_that_no_compiler_takes_fails_as_the_scripts_own(laboratory: Laboratory) -> None:
    for code in ("print('\0')", "x = '\udc80'", "(" * 5000):
        outcome = await laboratory.run(code)
        assert (outcome.ending, outcome.exit_code) == (Ending.FAILED, 1), outcome
        assert "Error" in outcome.message.splitlines()[0]


@pytest.mark.parametrize("backend_name", ["bubblewrap"])
@pytest.mark.parametrize(
    ("code", "exit_code", "message"),
    [
        ("import sys; sys.exit(0)", 0, ""),
        ("raise SystemExit", 0, ""),
        ("raise SystemExit(None)", 0, ""),
        ("import sys; sys.exit(3)", 3, "exit code 3"),
        ("import sys; sys.exit(256 + 3)", 3, "exit code 3"),
        ("import sys; sys.exit(-1)", 255, "exit code 255"),
        ("import sys; sys.exit(10**40)", 255, "exit code 255"),
        ("import sys; sys.exit('went wrong')", 1, "went wrong\nexit code 1"),
        ("import sys; sys.exit(True)", 1, "exit code 1"),
        ("import os; os._exit(4)", 4, "exit code 4"),
        ("raise KeyboardInterrupt", 130, "KeyboardInterrupt\nexit code 130"),
        ("import sys; sys.excepthook = None; raise ValueError('x')", 1, None),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 139, "Killed by signal 11 (SIGSEGV)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137, "Killed by signal 9 (SIGKILL)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 143, "Killed by signal 15 (SIGTERM)"),
        ("import os; os.abort()", 134, "Killed by signal 6 (SIGABRT)"),
    ],
)
async def test_a_script_ends_with_the_code_that_python_gives(
    laboratory: Laboratory, code: str, exit_code: int, message: str | None
) -> None:
    outcome = await laboratory.run(code)
    assert outcome.exit_code == exit_code, outcome
    assert outcome.ending is (Ending.COMPLETED if exit_code == 0 else Ending.FAILED)
    assert message is None or outcome.message == message
    assert await laboratory.usable()


@whatever_the_kernel
async def test_a_script_ends_as_the_interpreter_does(laboratory: Laboratory) -> None:
    """Threads are waited for, exit functions run, then everything is flushed."""
    code = """
import atexit, sys, threading, time
atexit.register(lambda: print("exit function"))
def work():
    time.sleep(0.05)
    print("thread")
threading.Thread(target=work).start()
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
sys.stdout.write("main, ")
"""
    assert await laboratory.printed(code) == "main, thread\nexit function\n"


@whatever_the_kernel
async def test_modules_that_look_for_their_main_module_work(laboratory: Laboratory) -> None:
    code = """
import concurrent.futures, dataclasses, pickle, subprocess, sys
@dataclasses.dataclass
class Point:
    x: int
print(pickle.loads(pickle.dumps(Point(3))))
with concurrent.futures.ThreadPoolExecutor(2) as pool:
    print(sum(pool.map(int, "123")))
print(subprocess.run([sys.executable, "-c", "print('child')"], capture_output=True, text=True).stdout, end="")
"""
    assert await laboratory.printed(code) == "Point(x=3)\n6\nchild\n"


async def test_processes_of_a_pool_find_the_script(laboratory: Laboratory) -> None:
    code = """
import multiprocessing
def double(number):
    return 2 * number
if __name__ == "__main__":
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            print(pool.map(double, [1, 2]))
"""
    assert await laboratory.printed(code) == "[2, 4]\n[2, 4]\n"


async def test_a_timeout_is_told_as_such_and_the_sandbox_goes_on(laboratory: Laboratory) -> None:
    code = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('on')\ntime.sleep(60)"
    began = trio.current_time()
    outcome = await laboratory.run(code, timeout=0.3)
    assert trio.current_time() - began < 3
    assert (outcome.ending, outcome.exit_code) == (Ending.TIMED_OUT, None)
    assert outcome.message == "Timeout: ran longer than 0.3 s"
    assert outcome.output == "on\n"
    assert await laboratory.usable()


async def test_a_script_that_stops_itself_is_killed_at_its_timeout(laboratory: Laboratory) -> None:
    outcome = await laboratory.run("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", timeout=0.3)
    assert outcome.ending is Ending.TIMED_OUT
    assert await laboratory.usable()


async def test_a_script_that_takes_too_much_memory_is_told_so(laboratory: Laboratory) -> None:
    outcome = await laboratory.run("block = bytearray(1 << 30)\nfor i in range(0, 1 << 30, 4096): block[i] = 1")
    assert outcome.ending is Ending.OUT_OF_MEMORY, outcome
    assert outcome.message.startswith(f"Out of memory: used more than {laboratory.memory_mb} MB")
    assert await laboratory.usable(unless_gvisor_died=True)


async def test_many_processes_that_take_much_memory_end_and_the_sandbox_goes_on(laboratory: Laboratory) -> None:
    code = """
import os
children = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        block = bytearray(60 << 20)
        for i in range(0, len(block), 4096): block[i] = 1
        os._exit(0)
    children.append(pid)
for pid in children: os.waitpid(pid, 0)
"""
    await laboratory.run(code)
    assert await laboratory.usable(unless_gvisor_died=True)


@whatever_the_kernel
async def test_large_payloads_and_code_arrive_whole(laboratory: Laboratory) -> None:
    payload = json.dumps("x" * 10_000_000)
    code = "import os, sys; print(len(payload), os.path.getsize(sys.argv[1]), 'CONTINUUM_PAYLOAD' in os.environ)"
    assert await laboratory.printed(code, payload=payload) == f"{len(payload)} {len(payload)} False\n"
    long_code = "# " + "x" * 1_000_000 + "\nprint(__import__('os').path.getsize(__file__))"
    assert await laboratory.printed(long_code) == f"{len(long_code)}\n"


@whatever_the_kernel
async def test_a_request_that_does_not_fit_on_the_disk_fails_as_the_scripts_own(laboratory: Laboratory) -> None:
    outcome = await laboratory.run("print('ran')", payload=json.dumps("x" * 17_000_000))
    assert (outcome.ending, outcome.output) == (Ending.FAILED, "")
    assert "could not start the script" in outcome.message
    assert await laboratory.usable()


async def test_a_full_disk_is_the_scripts_own_failure(laboratory: Laboratory) -> None:
    for place in (".", "/tmp", "/dev/shm"):
        code = f"file = open('{place}/large', 'wb')\nwhile True: file.write(bytes(1 << 20))"
        outcome = await laboratory.run(code)
        assert outcome.ending is Ending.FAILED
        assert "No space left" in outcome.message or "File too large" in outcome.message, outcome.message
        assert await laboratory.usable()


async def test_output_is_seen_while_the_script_runs(laboratory: Laboratory) -> None:
    seen = trio.Event()

    def watch(stream: Stream, text: str) -> None:
        if (stream, text) == (Stream.OUTPUT, "early\n"):
            seen.set()

    request = RunRequest(1, 1, "import time; print('early'); time.sleep(60)", "null", 60.0, 1000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(laboratory.sandbox.run, request, watch)
        with trio.fail_after(10):
            await seen.wait()
        nursery.cancel_scope.cancel()
