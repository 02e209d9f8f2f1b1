"""What is shipped: a script's text, what it requires, and where it came from."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from continuum.db.errors import InvalidTask
from continuum.requirements import BadRequirements, parse_requirements

SANDBOX_PATH = "/sandbox/task/script.py"
"""Where a script is in its sandbox, and in its tracebacks."""

EPILOGUE = """\
try:  # Continuum's client appended what follows: it prints the global `result`, where there is one, as a line of JSON.
    result
except NameError:
    pass
else:
    def _continuum_prints(value):
        import builtins as b, io, json, sys

        def plain(value):
            for method in ("isoformat", "model_dump", "tolist"):
                if b.hasattr(value, method):
                    return b.getattr(value, method)()
            if b.hasattr(value, "__dataclass_fields__"):
                return {name: b.getattr(value, name) for name in value.__dataclass_fields__}
            if b.isinstance(value, (b.set, b.frozenset)):
                return b.list(value)
            if b.hasattr(value, "_value_"):
                return value._value_
            if b.type(value).__module__.split(".")[0] in ("decimal", "pathlib", "uuid"):
                return b.str(value)
            raise b.TypeError("a %s is no JSON" % b.type(value).__name__)

        descriptor = 1
        try:
            line = "\\n" + json.dumps(value, ensure_ascii=False, allow_nan=False, default=plain)
        except b.Exception as error:
            descriptor, line = 2, "continuum: `result` cannot be JSON: %s" % b.str(error).replace("\\n", " ")
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except b.Exception:
                pass
        try:
            with io.open(descriptor, "w", encoding="utf-8", errors="backslashreplace", closefd=False) as stream:
                stream.write(line + "\\n")
        except b.OSError:
            pass

    if __name__ == "__main__":
        _continuum_prints(result)
"""
"""For Python 3.8 and newer, in ASCII. It begins with a word with which no statement goes on, so that a script that ends too
early stays wrong; it uses no name that the script may have given another meaning."""

COMPLAINT = "continuum: `result` cannot be JSON: "

_NAMES_RESULT = re.compile(r"\bresult\b")
_ENDS_IN_NOTHING = re.compile(r"(?:^|[\r\n])[ \t\f]*\\(?:\r\n|\r|\n)?\Z")
"""A last line that says no more than that it goes on: what follows would make it right."""
# The reference implementation's, of inline script metadata (PEP 723).
_BLOCK = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
_FRAME = re.compile(r'File "[^"\n]*/task/script\.py", line (\d+)')
_CALLING_FRAME = re.compile(
    r'  File "[^"\n]*/task/script\.py", line \d+, in <module>\n    result = \w+\(\*_call\["args"\].*\n(?:    [ ^~]+\n)?'
)
"""Of what calls a function that was shipped (see `shipping`)."""
_PLACE = re.compile(r'File "([^"\n]+)", line (\d+)')


@dataclass(frozen=True, slots=True)
class Script:
    """One script to ship.

    text: as its writer wrote it. shown_as: what tracebacks call it. shift: what is added to a line's number there.
    """

    text: str
    requirements: str | None = None
    shown_as: str = "script.py"
    shift: int = 0

    def as_written(self, traceback: str) -> str:
        """A traceback from a sandbox with the names and lines of the file that the script came from."""
        own = _CALLING_FRAME.sub("", traceback)
        return _FRAME.sub(lambda found: f'File "{self.shown_as}", line {int(found[1]) + self.shift}', own)

    def last_place_in(self, traceback: str) -> str:
        """The innermost place of this script's that a traceback (`as_written`) names: `report.py, line 3`."""
        places = [(file, line) for file, line in _PLACE.findall(traceback) if file == self.shown_as]
        return f"{places[-1][0]}, line {places[-1][1]}" if places else ""


def read_script(source: str | Path, requirements: str | Path | None = None) -> Script:
    """A script from source text or from a file. A text of one line that ends in `.py` is a path, as no script of any use is.

    requirements: the text of a requirements file, or its path; None takes what the script's `# /// script` block lists.

    Raises OSError for a file that cannot be read, `InvalidTask` for a block that makes no sense.
    """
    path = as_path(source)
    text = str(source) if path is None else _read(path)
    required = _read(requirements) if isinstance(requirements, Path) else requirements
    shown_as = "script.py" if path is None else str(path)
    return Script(text, inline_requirements(text) if required is None else required, shown_as)


def as_path(source: str | Path) -> Path | None:
    """The path that `source` is; None when it is a script's text."""
    if isinstance(source, Path):
        return source
    is_path = source.endswith(".py") and "\n" not in source and not source.lstrip().startswith("#")
    return Path(source) if is_path else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidTask(f"{path} is no text in UTF-8: {error}") from None


def printing_result(text: str) -> str:
    """A script that prints its global `result`, if it names one, at its end. Its own lines stay where they are."""
    if not _NAMES_RESULT.search(text) or _ENDS_IN_NOTHING.search(text):
        return text
    return text + ("" if text.endswith(("\n", "\r")) else "\n") + EPILOGUE


def inline_requirements(script: str) -> str | None:
    """The `dependencies` of a script's `# /// script` block, pinned as all requirements are; None without such a block.

    The Python of a sandbox is the image's: `requires-python` is not looked at. Raises `InvalidTask`.
    """
    if "# /// script" not in script:
        return None
    blocks = [match["content"] for match in _BLOCK.finditer(script) if match["type"] == "script"]
    if not blocks:
        return None
    if len(blocks) > 1:
        raise InvalidTask("the script has more than one `# /// script` block")
    toml = "".join(line.removeprefix("#").removeprefix(" ") for line in blocks[0].splitlines(keepends=True))
    try:
        dependencies = tomllib.loads(toml).get("dependencies", [])
    except tomllib.TOMLDecodeError as error:
        raise InvalidTask(f"the script's `# /// script` block is no TOML: {error}") from None
    if not isinstance(dependencies, list) or not all(isinstance(each, str) for each in dependencies):
        raise InvalidTask("`dependencies` in the script's `# /// script` block is no list of texts")
    for dependency in dependencies:
        try:
            parse_requirements(dependency)
        except BadRequirements as error:
            reason = str(error).partition(": ")[2]
            raise InvalidTask(
                f"the script's dependencies: {reason}; or give a pinned list with --requirements "
                "(`uv export --script FILE.py` makes one)"
            ) from None
    return "\n".join(dependencies)
