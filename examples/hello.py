"""A script and a function, run in a sandbox: `python examples/hello.py`."""

import continuum

SCRIPT = """
import json
import os
import platform

name = json.loads(payload)["name"]
result = f"Hello {name}, from Python {platform.python_version()} in {os.getcwd()}, as user {os.getuid()}."
"""


@continuum.task
def fibonacci(n: int) -> int:
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


# A database, a worker and sandboxes for this program. With ones of your own: `continuum.connect_blocking()`.
with continuum.local_blocking() as c:
    print(c.run(SCRIPT, {"name": "world"}, returns=str))
    print("The 90th Fibonacci number is", fibonacci.on(c)(90))
