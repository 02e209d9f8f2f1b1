"""What a runner tells of a script's end, for tests that stand in for one."""

from __future__ import annotations

import json


def told_exit(status: int = 0, **values: object) -> bytes:
    """The data of an exit frame: an end with this status that met no limit, but for `values`."""
    told: dict[str, object] = {
        "status": status,
        "timed_out": False,
        "out_of_cpu_time": False,
        "oom": False,
        "too_many_processes": False,
        "full": [],
        "dropped_output": 0,
        "dropped_error": 0,
    }
    return json.dumps(told | values).encode()
