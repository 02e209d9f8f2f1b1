"""From a plain function to a script that calls it: what it needs is found out here, and not in a sandbox.

A function is shipped as its source. The modules that it uses are imported in the script as they are in its own module; anything
else that it uses from outside would not be there, and is refused, all of it in one message.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import symtable
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

from continuum.client.errors import NotShippable
from continuum.client.sources import Script

ALWAYS_THERE = {"__name__", "__file__", "__builtins__", "__doc__"}
"""Globals of every script."""

_MISSING = object()

_HEAD = "from __future__ import annotations\n"
_CALL = """
_call = __import__("json").loads(__import__("pathlib").Path(__import__("sys").argv[1]).read_text("utf-8"))
result = {name}(*_call["args"], **_call["kwargs"])
"""


def check_function(function: object) -> FunctionType:
    """A plain function, which is what can be shipped. Raises `NotShippable` for anything else, as far as can be told at once."""
    name = getattr(function, "__qualname__", repr(function))
    if inspect.ismethod(function) or isinstance(function, staticmethod | classmethod):
        raise NotShippable(f"{name} is a method: ship a plain function, and give it what it needs as arguments")
    if not isinstance(function, FunctionType):
        raise NotShippable(f"{name} is no plain function, but a {type(function).__name__}")
    scopes = function.__qualname__.split(".")
    if len(scopes) > 1 and scopes[-2] != "<locals>":
        raise NotShippable(f"{name} is a method: ship a plain function, and give it what it needs as arguments")
    if function.__name__ == "<lambda>":
        raise NotShippable("a lambda has no name to be called by: write it as a function with `def`")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise NotShippable(f"{name} is async: ship a plain function; it may call `asyncio.run` itself")
    if inspect.isgeneratorfunction(function):
        raise NotShippable(f"{name} yields: return a list, since a result is one value")
    if hasattr(function, "__wrapped__"):
        raise NotShippable(f"{name} is wrapped by another decorator: ship the plain function")
    return function


def ship(function: FunctionType, requirements: str | None) -> Script:
    """The script that calls a function with the arguments in its payload, `{"args": [...], "kwargs": {...}}`, and has what it
    returns as its result. Raises `NotShippable`."""
    source = _Source.of(function)
    problems: list[str] = []
    imports = list(_imports(function, source, problems))
    if problems:
        lines = "\n".join(f"- it {problem}" for problem in problems)
        raise NotShippable(f"{function.__qualname__} cannot be run in a sandbox as it is:\n{lines}")
    head = _HEAD + "".join(f"{line}\n" for line in dict.fromkeys(imports)) + "\n"
    if source.indented:
        head += "if True:\n"
    text = head + source.text.rstrip("\n") + "\n" + _CALL.format(name=function.__name__)
    return Script(text, requirements, source.file, source.line - head.count("\n") - 1)


@dataclass(frozen=True, slots=True)
class _Source:
    """A function's own lines, without its decorator, as they stand in its file.

    line: of its `def`. indented: whether it stands in a block, as it stays: its texts of several lines must not change.
    """

    file: str
    line: int
    text: str
    indented: bool
    tree: ast.FunctionDef

    @classmethod
    def of(cls, function: FunctionType) -> _Source:
        name = function.__qualname__
        try:
            lines, first = inspect.getsourcelines(function)
        except (OSError, TypeError):
            raise NotShippable(
                f"the source of {name} is not to be found: define it in a file, or in a notebook's cell"
            ) from None
        indented = lines[0][:1].isspace()
        tree = ast.parse(("if True:\n" if indented else "") + "".join(lines))
        node: ast.AST = tree.body[0]
        if isinstance(node, ast.If):
            node = node.body[0]
        if not isinstance(node, ast.FunctionDef) or node.name != function.__name__:
            raise NotShippable(f"the source of {name} is not that of a function of this name")
        if len(node.decorator_list) > 1:
            others = ", ".join(f"@{ast.unparse(each)}" for each in node.decorator_list)
            raise NotShippable(
                f"{name} has several decorators ({others}), which a sandbox does not have: ship a plain function"
            )
        skipped = node.lineno - 1 - indented
        file = inspect.getsourcefile(function) or "script.py"
        return cls(file, first + skipped, "".join(lines[skipped:]), indented, node)


def _imports(function: FunctionType, source: _Source, problems: list[str]) -> Iterator[str]:
    """The import statements that a function needs; what it needs else is added to the problems."""
    needed, declared = _names_from_outside(source.tree)
    problems += [
        f"declares `global {name}`: a sandbox keeps nothing from one call to the next; return it instead"
        for name in sorted(declared)
    ]
    around = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    for name in sorted(needed - declared - ALWAYS_THERE - {function.__name__}):
        value = function.__globals__.get(name, _MISSING)
        if name in around:
            try:
                value = around[name].cell_contents
            except ValueError:
                value = _MISSING
        elif value is _MISSING:
            if not hasattr(builtins, name):
                problems.append(f"uses `{name}`, which is defined nowhere: import or define it inside the function")
            continue
        statements = list(_statements_for(name, value, function))
        yield from statements
        if not statements:
            problems.append(_what_is_wrong_with(name, value, function, name in around))


def _names_from_outside(tree: ast.FunctionDef) -> tuple[set[str], set[str]]:
    """The global names that a function reads, those in its defaults included; and those that it declares `global`."""
    bare = _WithoutAnnotations().visit(ast.parse(ast.unparse(tree)))
    top = symtable.symtable(ast.unparse(bare), "<function>", "exec")
    needed = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_referenced() and not symbol.is_assigned()}
    declared: set[str] = set()
    tables = list(top.get_children())
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            if symbol.is_declared_global():
                declared.add(symbol.get_name())
            elif symbol.is_global() and symbol.is_referenced():
                needed.add(symbol.get_name())
    return needed, declared


class _WithoutAnnotations(ast.NodeTransformer):
    """Takes away what is not evaluated in the script."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if not getattr(self, "inside", False):
            self.inside, node.decorator_list = True, []
        node.returns = None
        self.generic_visit(node)
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self.generic_visit(node)
        value = node.value or ast.Constant(None)
        return ast.copy_location(ast.Assign([node.target], value), node)


def _statements_for(name: str, value: object, function: FunctionType) -> Iterator[str]:
    """What gives a script what `name` is here; nothing where no import does."""
    found = False
    for node in _import_nodes(function):
        for alias in node.names:
            bound = alias.asname or (alias.name if isinstance(node, ast.ImportFrom) else alias.name.partition(".")[0])
            if bound == name and _gives(node, alias, value) and _is_there(_module_of(node, alias)):
                found = True
                yield ast.unparse(
                    ast.ImportFrom(node.module, [alias], 0) if isinstance(node, ast.ImportFrom) else ast.Import([alias])
                )
    if not found and isinstance(value, ModuleType) and _is_there(value.__name__):
        yield f"import {value.__name__}" + (f" as {name}" if value.__name__ != name else "")
    elif not found and not isinstance(value, ModuleType):
        module, own_name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
        if isinstance(module, str) and _is_there(module) and getattr(sys.modules.get(module), own_name, None) is value:
            yield f"from {module} import {own_name}" + (f" as {name}" if own_name != name else "")


def _import_nodes(function: FunctionType) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports in the file, or the cell, that a function is from."""
    try:
        tree = ast.parse("".join(inspect.findsource(function)[0]))
    except (OSError, TypeError, SyntaxError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and not node.level):
            yield node


def _module_of(node: ast.Import | ast.ImportFrom, alias: ast.alias) -> str:
    return alias.name if isinstance(node, ast.Import) else node.module or ""


def _gives(node: ast.Import | ast.ImportFrom, alias: ast.alias, value: object) -> bool:
    """Whether an import, as it stands, has bound this very value."""
    module = sys.modules.get(_module_of(node, alias))
    if isinstance(node, ast.ImportFrom):
        return getattr(module, alias.name, _MISSING) is value
    if alias.asname is None:
        return module is not None and sys.modules.get(alias.name.partition(".")[0]) is value
    return module is value


def _is_there(module: str) -> bool:
    """Whether a sandbox may have a module: of the standard library, or of a package that is installed here."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return top != "__main__"
    found = sys.modules.get(top)
    places = [getattr(found, "__file__", None) or "", *map(str, getattr(found, "__path__", []))]
    return any("site-packages" in place or "dist-packages" in place for place in places)


def _what_is_wrong_with(name: str, value: object, function: FunctionType, around: bool) -> str:
    if value is _MISSING:
        return f"uses `{name}`, which has no value yet"
    if isinstance(value, ModuleType):
        return f"uses the module `{value.__name__}`, which is your own: a sandbox does not have it"
    own = getattr(value, "__module__", None)
    elsewhere = (
        f" of your own module `{own}`" if isinstance(own, str) and own not in (function.__module__, "builtins") else ""
    )
    if callable(value):
        return f"uses `{name}`{elsewhere}: a function is shipped alone; define it inside the function"
    where = "the function around it" if around else "its module"
    return f"uses `{name}` of {where}: give it as an argument, or define it inside the function"


def annotations_of(function: Callable[..., Any]) -> dict[str, Any]:
    """What a function's annotations mean; only those that can be told when some cannot."""
    import typing

    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # an annotation may be any expression, and is not for us to judge
        return {}
