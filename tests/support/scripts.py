"""Scripts run for real without a sandbox: as the runner does it, in a fork of an interpreter that is there already.

Cheap enough for property tests (a few milliseconds each), and for a worker on the virtual clock. Python 3.8 where there is
one, since that is the oldest that a sandbox may have.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from continuum.model import Ending, Outcome, RunRequest
from continuum.sandbox.protocol import OutputSink
from tests.support.fake_sandbox import FakeBackend, FakeSandbox

HOST = r"""
import atexit, json, os, sys, tempfile

def run(code, payload, folder):
    path = folder + "/script.py"
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(code)
    with open(folder + "/payload.json", "w", encoding="utf-8") as file:
        file.write(payload)
    main = type(sys)("__main__")
    main.__dict__.update(__file__=path, __builtins__=__builtins__, payload=payload, __cached__=None)
    sys.modules["__main__"] = main
    sys.argv[:] = [path, folder + "/payload.json"]
    sys.stdout = sys.__stdout__ = open(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    try:
        exec(compile(code.encode(), path, "exec", dont_inherit=True), main.__dict__)
        exit_code = 0
    except SystemExit as stop:
        exit_code = stop.code if isinstance(stop.code, int) else stop.code is not None
        if exit_code and not isinstance(stop.code, int):
            sys.stderr.write(str(stop.code) + "\n")
    except BaseException as error:
        trace = error.__traceback__.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        exit_code = 1
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass
    os._exit(int(exit_code) & 255)

for line in sys.stdin:
    request = json.loads(line)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        os.mkdir(folder + "/task")
        pid = os.fork()
        if not pid:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            run(request["code"], request["payload"], folder + "/task")
        status = os.waitpid(pid, 0)[1]
        out.seek(0)
        err.seek(0)
        texts = [file.read().decode("utf-8", "replace") for file in (out, err)]
    print(json.dumps([*texts, os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)]), flush=True)
"""


def oldest_python() -> str:
    """Python 3.8 where it is installed, else our own."""
    found = shutil.which("python3.8")
    installed = sorted(Path.home().glob(".pyenv/versions/3.8.*/bin/python3.8"))
    usable = [str(each) for each in installed] or ([found] if found else [])
    return usable[0] if usable else sys.executable


@dataclass
class Ended:
    """How a script ended."""

    stdout: str
    stderr: str
    exit_code: int


class ScriptHost:
    """The interpreter that is forked."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, code: str, payload: str = "null") -> Ended:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"code": code, "payload": payload}) + "\n")
        self._process.stdin.flush()
        return Ended(*json.loads(self._process.stdout.readline()))


@contextmanager
def script_host(python: str | None = None) -> Iterator[ScriptHost]:
    command = [python or oldest_python(), "-I", "-c", HOST]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield ScriptHost(process)
        assert process.stdin is not None
        process.stdin.close()


class ScriptBackend(FakeBackend):
    """A fake backend that runs scripts for real, one after another, and knows no limits."""

    def __init__(self, host: ScriptHost) -> None:
        super().__init__(cold_start=0.0)
        self.host = host

    async def start(self, layer: object = None) -> FakeSandbox:
        self.started += 1
        return _ScriptSandbox(self, f"fake-{self.started}")


class _ScriptSandbox(FakeSandbox):
    async def run(self, request: RunRequest, sink: OutputSink) -> Outcome:
        assert isinstance(self.backend, ScriptBackend)
        self.backend.ran.append(request)
        ended = self.backend.host.run(request.code, request.payload)
        if ended.exit_code == 0:
            return Outcome(Ending.COMPLETED, 0, ended.stdout, ended.stderr)
        last = (ended.stderr.rstrip().splitlines() or [""])[-1]
        message = f"{last}\nexit code {ended.exit_code}"
        return Outcome(Ending.FAILED, ended.exit_code, ended.stdout, ended.stderr, message)
