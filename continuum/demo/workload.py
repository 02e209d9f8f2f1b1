"""The demo's tasks: what each kind runs, and what must come of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from continuum.model import NewTask, Status, TaskRecord

ORDERS = [
    {"id": 1, "active": True, "name": "  Desk lamp ", "price": 24.5, "quantity": 2},
    {"id": 2, "active": False, "name": "Chair", "price": 80, "quantity": 1},
    {"id": 3, "active": True, "name": "notebook", "price": 3.25, "quantity": 12},
]
LATENCIES = [10, 12, 500, 11, 15, 9, 100, 8, 10, 11]

HELLO = "print('Hello from a sandbox')"
SLEEP = "import time\ntime.sleep(1)\nprint('slept for a second')"
ECHO = "import sys\nprint(open(sys.argv[1]).read())"
ETL = """\
import json

orders = json.loads(payload)["orders"]
clean = [
    {"id": order["id"], "name": order["name"].strip().upper(), "total": order["price"] * order["quantity"]}
    for order in orders
    if order["active"]
]
print(json.dumps(clean))
"""
REPORT = """\
import json
import statistics

latencies = sorted(json.loads(payload)["latencies"])
rank = round(0.95 * (len(latencies) - 1))
print(json.dumps({"mean": statistics.mean(latencies), "p95": latencies[rank]}))
"""
PRIMES = """\
sieve = bytearray([1]) * 5000
sieve[0:2] = b"\\0\\0"
for n in range(2, 71):
    if sieve[n]:
        sieve[n * n :: n] = bytes(len(range(n * n, 5000, n)))
print(sum(sieve))
"""
FILE = """\
with open("lines.txt", "w") as file:
    for n in range(1000):
        file.write(f"line {n} of a file that nobody else will see\\n")
with open("lines.txt") as file:
    text = file.read()
print(len(text.splitlines()), len(text.split()))
"""
MATRIX = """\
size = 100
a = [[i * j % 7 for j in range(size)] for i in range(size)]
b = [[(i + j) % 5 for j in range(size)] for i in range(size)]
columns = list(zip(*b))
product = [[sum(x * y for x, y in zip(row, column)) for column in columns] for row in a]
print(sum(map(sum, product)))
"""
EXCEPTION = "orders = {}\nprint(orders['missing'])"
EXIT = "import sys\nprint('leaving')\nsys.exit(3)"
TIMEOUT = "while True:\n    pass"
HOG = "hoard = []\nwhile True:\n    hoard.append(bytearray(16 * 1024 * 1024))"
FLAKY = """\
import os
import sys

if os.environ["CONTINUUM_ATTEMPT"] == "1":
    sys.exit("not yet")
print("at the second try")
"""


def _product_sum() -> int:
    size = 100
    a = [[i * j % 7 for j in range(size)] for i in range(size)]
    b = [[(i + j) % 5 for j in range(size)] for i in range(size)]
    columns = list(zip(*b, strict=True))
    return sum(sum(x * y for x, y in zip(row, column, strict=True)) for row in a for column in columns)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of task. expected: the terminal state; check: whether a record that reached it holds the right things."""

    name: str
    code: str
    expected: Status
    check: Callable[[TaskRecord], bool]
    payload: Callable[[int], object] = lambda number: {}
    max_attempts: int = 1
    timeout: float = 30.0

    def task(self, number: int) -> NewTask:
        return NewTask(
            name=f"demo: {self.name}",
            code=self.code,
            payload=json.dumps(self.payload(number)),
            max_attempts=self.max_attempts,
            timeout=self.timeout,
        )


def _prints(text: str) -> Callable[[TaskRecord], bool]:
    return lambda record: record.output == text + "\n"


def _prints_json(value: object) -> Callable[[TaskRecord], bool]:
    return lambda record: json.loads(record.output or "null") == value


def _fails_with(text: str) -> Callable[[TaskRecord], bool]:
    return lambda record: text in (record.last_error or "")


WORKING = (
    Kind("hello", HELLO, Status.COMPLETED, _prints("Hello from a sandbox")),
    Kind("sleep 1 s", SLEEP, Status.COMPLETED, _prints("slept for a second")),
    Kind(
        "payload echo",
        ECHO,
        Status.COMPLETED,
        lambda record: json.loads(record.output or "null") == json.loads(record.payload or "{}"),
        payload=lambda number: {"number": number, "text": "äöü ☃"},
    ),
    Kind(
        "order ETL",
        ETL,
        Status.COMPLETED,
        _prints_json([{"id": 1, "name": "DESK LAMP", "total": 49.0}, {"id": 3, "name": "NOTEBOOK", "total": 39.0}]),
        payload=lambda number: {"orders": ORDERS},
    ),
    Kind(
        "metrics report",
        REPORT,
        Status.COMPLETED,
        _prints_json({"mean": 68.6, "p95": 500}),
        payload=lambda number: {"latencies": LATENCIES},
    ),
    Kind("primes < 5000", PRIMES, Status.COMPLETED, _prints("669")),
    Kind("write and count", FILE, Status.COMPLETED, _prints("1000 10000")),
    Kind("100x100 matrix", MATRIX, Status.COMPLETED, _prints(str(_product_sum()))),
)
FAILING = (
    Kind("exception", EXCEPTION, Status.FAILED, _fails_with("KeyError: 'missing'")),
    Kind("exit code 3", EXIT, Status.FAILED, lambda record: record.exit_code == 3),
    Kind("timeout", TIMEOUT, Status.FAILED, _fails_with("Timeout: "), timeout=1.5),
    Kind("memory hog", HOG, Status.FAILED, _fails_with("Out of memory")),
    Kind("second try", FLAKY, Status.COMPLETED, _prints("at the second try"), max_attempts=2),
)
"""What must fail, two of each; and what must succeed at its second try."""


def make_workload(count: int) -> list[tuple[Kind, NewTask]]:
    """`count` tasks of the working kinds in turn, and two of each of the others scattered among them."""
    workload = [(kind, kind.task(number)) for number in range(count) for kind in [WORKING[number % len(WORKING)]]]
    for number in range(2 * len(FAILING)):
        kind = FAILING[number % len(FAILING)]
        workload.insert(number * len(workload) // (2 * len(FAILING)), (kind, kind.task(number)))
    return workload
