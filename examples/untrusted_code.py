"""Answers to an exercise from people whom nobody knows: `python examples/untrusted_code.py`.

Each may run for a second, in an empty folder, as a user without rights, without a network. What one of them does, the next
does not see.
"""

import trio

import continuum

EXERCISE = "the sum of the squares of the numbers in the payload"
NUMBERS = [1, 2, 3, 4]
RIGHT = 30

ANSWERS = {
    "Ada, right": "import json\nresult = sum(n * n for n in json.loads(payload))",
    "Bob, wrong": "import json\nresult = sum(json.loads(payload)) ** 2",
    "Cem, printing": "import json\nprint(sum(n * n for n in json.loads(payload)))",
    "Dan, a typo": "import json\nresult = sum(n * n for n in json.loads(payload)",
    "Eve, for ever": "while True:\n    pass",
    "Fay, all memory": "hoard = []\nwhile True:\n    hoard.append(bytearray(16 * 1024 * 1024))",
    "Gil, phones home": "import urllib.request\nurllib.request.urlopen('http://192.0.2.1/', timeout=0.5)",
    "Hal, leaves a file": "open('/tmp/answer.txt', 'w').write('30')\nresult = 0",
    "Ivy, looks for it": "result = int(open('/tmp/answer.txt').read())",
    "Jon, stops others": "import os\nos.kill(-1, 9)",
}


async def main() -> None:
    async with continuum.local(egress="none", container_memory_mb=128) as c:
        print("The exercise:", EXERCISE)
        async with trio.open_nursery() as nursery:
            for who, answer in ANSWERS.items():
                nursery.start_soon(judge, c, who, answer)


async def judge(c: continuum.Client, who: str, answer: str) -> None:
    try:
        result = await c.run(answer, NUMBERS, name=who, tenant=who, timeout=1, max_attempts=1)
    except continuum.TaskTimedOut:
        verdict = "stopped: it took longer than a second"
    except continuum.TaskOutOfMemory:
        verdict = "stopped: it used more than 128 MB"
    except continuum.TaskFailed as error:
        verdict = f"failed: {(error.record.last_error or '').splitlines()[0]}"
    else:
        verdict = "right" if result == RIGHT else f"wrong: {result}"
    print(f"{who:19} {verdict}")


trio.run(main)
