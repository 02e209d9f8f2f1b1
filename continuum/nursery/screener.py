"""Runs bandit over one script, in a process of its own: `python -I screener.py REQUEST`, with the script on stdin.

What it parses is hostile, so it limits itself before it reads any of it: a parser that is led astray costs this process and
nothing else. REQUEST and the answer on stdout are JSON; see `screening`, which is the only one to start it. Ends with 3 when
bandit or its configuration cannot be used, which is nobody's fault but the operator's.
"""

from __future__ import annotations

import io
import json
import logging
import resource
import sys
from typing import Any

UNUSABLE = 3
"""The exit code for a bandit, or a configuration, that cannot be used."""
DEEPEST = 10_000
"""Levels of nesting to follow: many more than people write, and fewer than would take all memory."""
LONGEST_TEXT = 300
"""Characters of one finding: it may quote the script."""


def main() -> None:
    request = json.loads(sys.argv[1])
    _limit(resource.RLIMIT_CPU, request["cpu_seconds"], grace=1)  # which tells it from being killed for another reason
    _limit(resource.RLIMIT_AS, request["memory"])
    _limit(resource.RLIMIT_FSIZE, request["answer"])
    _limit(resource.RLIMIT_CORE, 0)
    logging.disable()  # bandit's own, which quotes what it reads
    try:
        analyse = _prepare(request)
    except Exception as error:
        _answer({"unusable": f"{type(error).__name__}: {error}"})
        sys.exit(UNUSABLE)
    sys.setrecursionlimit(DEEPEST)
    try:
        _answer(analyse(sys.stdin.buffer.read()))
    except SyntaxError:
        _answer({"syntax_error": True})
    except RecursionError:
        _answer({"failure": "it is nested too deeply"})
    except MemoryError:
        # Python's parser says the same when it is led too deep.
        _answer(
            {"failure": f"it is nested too deeply, or takes more than {request['memory'] // 1024**2} MiB of memory"}
        )
    except ValueError as error:  # a NUL, to Python 3.11
        _answer({"failure": str(error)[:LONGEST_TEXT]})


def _limit(what: int, value: int, grace: int = 0) -> None:
    """Set a limit, or keep what is narrower already. grace: by how much the hard limit is wider."""
    _, hard = resource.getrlimit(what)
    widest = value + grace if hard == resource.RLIM_INFINITY else min(value + grace, hard)
    resource.setrlimit(what, (min(value, widest), widest))


def _prepare(request: dict[str, Any]) -> Any:
    """Bandit with its configuration, as one function from a script's bytes to the answer. Raises all sorts of things."""
    from bandit.core import config, extension_loader, meta_ast, metrics, node_visitor, test_set

    chosen = config.BanditConfig(request["config"])
    profile = {"include": set(chosen.get_option("tests") or []), "exclude": set(chosen.get_option("skips") or [])}
    extension_loader.MANAGER.validate_profile(profile)
    unknown = [rule for rule in set().union(*profile.values()) if not extension_loader.MANAGER.check_id(rule)]
    if unknown:  # bandit only warns of them, and a list with one mistake may be a list of no rule at all
        raise ValueError(f"no such rule: {', '.join(map(str, unknown))}")
    tests = test_set.BanditTestSet(chosen, profile)

    def analyse(script: bytes) -> dict[str, Any]:
        counts = metrics.Metrics()
        counts.begin("script.py")
        # No lines with `# nosec`: the script must not have a say in this.
        visitor = node_visitor.BanditNodeVisitor(
            "script.py", io.BytesIO(script), meta_ast.BanditMetaAst(), tests, False, {}, counts
        )
        visitor.process(script)
        found = [one for one in visitor.tester.results if one.filter(request["severity"], request["confidence"])]
        found.sort(key=lambda one: one.lineno)
        shown = found[: request["findings"]]
        return {
            "findings": [[one.test_id, one.severity.lower(), one.lineno, one.text[:LONGEST_TEXT]] for one in shown],
            "count": len(found),
        }

    return analyse


def _answer(values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(values))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
