"""A runner as somebody writes it who trusts the code: what attacks must succeed against, in a throwaway container.

It speaks the protocol of `continuum/sandbox/runner.py` and has none of its care. Scripts run as root, all in one warm
interpreter that remembers its requests; they inherit every descriptor; a timeout is a polite signal; nothing is cleaned up
after them; another tenant's task runs beside them.
"""

import json
import os
import select
import signal
import struct
import sys
import time
from contextlib import suppress
from typing import Any

HEADER = struct.Struct("!IIQ")
FRAME = struct.Struct("!cI")
LONGEST_LIFE = 600
"""Seconds after which an unprotected sandbox is no more, whatever happened to those who started it."""

requests: list[dict[str, Any]] = []


def read_exactly(descriptor: int, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = os.read(descriptor, min(length - len(data), 1 << 20))
        if not part:
            os._exit(0)
        data += part
    return data


def send(kind: bytes, data: bytes = b"") -> None:
    for start in range(0, len(data) or 1, 60000):
        part = memoryview(FRAME.pack(kind, len(data[start : start + 60000])) + data[start : start + 60000])
        while part:
            part = part[os.write(1, part) :]


def split(body: bytes) -> list[bytes]:
    parts = []
    while body:
        length = int.from_bytes(body[:4], "big")
        parts.append(body[4 : 4 + length])
        body = body[4 + length :]
    return parts


class Interpreter:
    """The process in which all scripts run, until one ends it.

    closed: whether its stdout has ended, so that nothing more is to be had from it: the kernel may take its time to end it.
    """

    def __init__(self) -> None:
        self.closed = False
        os.set_inheritable(os.dup(1), True)
        jobs_in, self.jobs = os.pipe()
        self.ended, ended_out = os.pipe()
        self.out, out = os.pipe()
        self.err, err = os.pipe()
        for descriptor in (jobs_in, self.jobs, self.ended, ended_out):
            os.set_inheritable(descriptor, True)
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(out, 1)
            os.dup2(err, 2)
            for descriptor in (out, err):
                os.close(descriptor)
            sys.stdout = sys.__stdout__ = open(1, "w", buffering=1, closefd=False)  # type: ignore[misc]  # noqa: SIM115
            sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, closefd=False)  # type: ignore[misc]  # noqa: SIM115
            while True:
                length = int.from_bytes(read_exactly(jobs_in, 8), "big")
                code = execute(split(read_exactly(jobs_in, length)))
                os.write(ended_out, bytes([code & 0xFF]))
        os.close(out)
        os.close(err)
        os.close(ended_out)
        for descriptor in (self.out, self.err):
            os.set_blocking(descriptor, False)


def execute(parts: list[bytes]) -> int:
    meta, code, payload = (part.decode("utf-8", "surrogatepass") for part in parts[:3])
    requests.append({"meta": meta, "code": code, "payload": payload})
    for place in ("/sandbox/task", "/sandbox/work"):
        os.makedirs(place, exist_ok=True)
    os.chdir("/sandbox/work")
    for path, text in (("/sandbox/task/script.py", code), ("/sandbox/task/payload.json", payload)):
        with open(path, "w", errors="surrogatepass") as file:
            file.write(text)
    os.environ.update(json.loads(meta)["environment"])
    os.environ["CONTINUUM_PAYLOAD_OF_" + os.environ["CONTINUUM_TASK_ID"]] = payload[:10000]
    sys.argv[:] = ["/sandbox/task/script.py", "/sandbox/task/payload.json"]
    if "/sandbox/task" not in sys.path:
        sys.path.insert(0, "/sandbox/task")
    try:
        exec(compile(code, "script.py", "exec"), {"__name__": "__main__", "payload": payload})
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    return status


def run(interpreter: Interpreter, body: bytes, timeout: float) -> dict[str, Any]:
    """One script to its end, or to what is taken for it: an exit byte, the end of the interpreter or of its stdout."""
    os.write(interpreter.jobs, len(body).to_bytes(8, "big"))
    view = memoryview(body)
    while view:
        view = view[os.write(interpreter.jobs, view) :]
    deadline = time.monotonic() + timeout
    poll = select.poll()
    outputs = {interpreter.out: b"O", interpreter.err: b"E"}
    for descriptor in (interpreter.ended, *outputs):
        poll.register(descriptor, select.POLLIN)
    status, timed_out = None, False
    while status is None:
        if time.monotonic() > deadline and not timed_out:
            timed_out = True
            os.kill(interpreter.pid, signal.SIGTERM)
        for descriptor, _ in poll.poll(20):
            data = os.read(descriptor, 60000)
            if descriptor in outputs:
                if data:
                    send(outputs[descriptor], data)
                    continue
                poll.unregister(descriptor)
            if data:
                status = data[0] << 8
            elif descriptor == interpreter.out:
                interpreter.closed = True
                time.sleep(0.05)  # it may be about to end
                status = 0
        ended, found = os.waitpid(interpreter.pid, os.WNOHANG)
        if ended:
            status = found
    for descriptor, kind in outputs.items():
        try:
            while data := os.read(descriptor, 60000):
                send(kind, data)
        except BlockingIOError:
            pass
    return {"status": status, "timed_out": timed_out}


def serve(victim: str) -> None:
    if os.getpid() == 1:
        # No signal from inside a process namespace ends its first process; the runner is to be within reach.
        pid = os.fork()
        if pid:
            # Should the runner be stopped and nobody be left to remove the container, it ends by itself.
            signal.signal(signal.SIGALRM, lambda *_: os._exit(1))
            signal.alarm(LONGEST_LIFE)
            while os.wait()[0] != pid:
                pass
            os._exit(1)
    os.umask(0)
    os.makedirs("/sandbox/work", exist_ok=True)
    if victim and os.fork() == 0:
        null = os.open("/dev/null", os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.chdir("/sandbox/work")
        exec(compile(victim, "victim", "exec"), {"__name__": "victim"})
        os._exit(0)
    interpreter = Interpreter()
    while True:
        send(b"R")
        timeout, _, length = HEADER.unpack(read_exactly(0, HEADER.size))
        body = read_exactly(0, length)
        if interpreter.closed or not alive(interpreter.pid):
            interpreter = Interpreter()
        send(b"X", json.dumps(run(interpreter, body, timeout / 1000)).encode())


def alive(pid: int) -> bool:
    """Whether a child process has neither ended nor been waited for."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False


if __name__ == "__main__":
    serve(os.environ.pop("VICTIM", ""))
