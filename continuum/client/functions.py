"""Plain functions that run in a sandbox: `@client.task`, or `@continuum.task` and `on(client)`."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, Self, TypeVar, Unpack, cast, overload

from continuum.client.calls import map_script, result_of, run_script, submit_script
from continuum.client.errors import NotShippable, TaskError
from continuum.client.results import NOT_GIVEN, adapter_for
from continuum.client.shipping import annotations_of, check_function, ship
from continuum.client.sources import Script
from continuum.client.tasks import MapOptions, RunOptions

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from continuum.client.blocking import BlockingClient, BlockingResults
    from continuum.client.mapping import Results
    from continuum.client.thread import ClientThread
    from continuum.client.trio_client import Client

P = ParamSpec("P")
T = TypeVar("T")


class Shippable(Generic[P, T]):
    """A function, and what is said of the tasks that run it. Its source is looked at when it is first needed."""

    def __init__(self, function: Callable[P, T], options: RunOptions) -> None:
        self.function = function
        self.options = options
        self._plain = check_function(function)
        self._signature = inspect.signature(function)

    def saying(self, options: RunOptions) -> Shippable[P, T]:
        """The same function with other options over these."""
        return Shippable(self.function, cast("RunOptions", {**self.options, **options}))

    @property
    def of_each_task(self) -> RunOptions:
        """The options, but for those that went into the script."""
        name = self.options.get("name") or self._plain.__qualname__.rpartition(".")[2]
        options = {**self.options, "name": name}
        options.pop("requirements", None)
        return cast("RunOptions", options)

    @cached_property
    def script(self) -> Script:
        """Raises `NotShippable`."""
        required = self.options.get("requirements")
        return ship(self._plain, required.read_text(encoding="utf-8") if isinstance(required, Path) else required)

    @cached_property
    def returns(self) -> object:
        """What the function says that it returns. Raises TypeError for what no result can be checked for."""
        if "return" not in self._plain.__annotations__:
            return NOT_GIVEN
        if "return" not in self._annotations:
            shown = self._plain.__annotations__["return"]
            raise NotShippable(f"{self._plain.__qualname__} returns {shown!r}, which is not to be found when it runs")
        adapter_for(self._annotations["return"])
        return self._annotations["return"]

    def payload(self, arguments: Sequence[object], keywords: Mapping[str, object]) -> dict[str, object]:
        """The arguments of one call. Raises TypeError where the function does not take them."""
        bound = self._signature.bind(*arguments, **keywords)
        for name, value in bound.arguments.items():
            adapter = self._adapters.get(name)
            if adapter is None:
                continue
            match self._signature.parameters[name].kind:
                case inspect.Parameter.VAR_POSITIONAL:
                    bound.arguments[name] = tuple(self._checked(name, each, adapter) for each in value)
                case inspect.Parameter.VAR_KEYWORD:
                    bound.arguments[name] = {key: self._checked(key, each, adapter) for key, each in value.items()}
                case _:
                    bound.arguments[name] = self._checked(name, value, adapter)
        return {"args": bound.args, "kwargs": bound.kwargs}

    def _checked(self, name: str, value: object, adapter: TypeAdapter[Any]) -> Any:
        from pydantic import ValidationError

        try:
            return adapter.validate_python(value)
        except ValidationError as error:
            problems = "; ".join(
                ".".join(["", *map(str, each["loc"])]).lstrip(".") + ": " * bool(each["loc"]) + each["msg"]
                for each in error.errors(include_url=False, include_context=False)[:5]
            )
            raise TypeError(f"{self._plain.__qualname__}: argument `{name}`: {problems}") from None

    @cached_property
    def _annotations(self) -> dict[str, Any]:
        return annotations_of(self._plain)

    @cached_property
    def _adapters(self) -> dict[str, TypeAdapter[Any]]:
        return {
            name: adapter_for(kind)
            for name, kind in self._annotations.items()
            if name != "return" and is_plain_json(kind)
        }


def is_plain_json(kind: Any) -> bool:
    """Whether values of a type arrive in a sandbox as what they are: JSON has no dates, sets or classes."""
    if kind in (int, float, str, bool, None, types.NoneType, list, dict, Any):
        return True
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return all(isinstance(each, str | int | bool | None) for each in arguments)
    if origin in (list, typing.Union, types.UnionType):
        return all(is_plain_json(each) for each in arguments)
    return origin is dict and arguments[0] is str and is_plain_json(arguments[1])


class Function(Generic[P, T]):
    """What `@continuum.task` makes of a function. Called, it runs here, as it would without; `on(client)` runs in a sandbox."""

    def __init__(self, shippable: Shippable[P, T]) -> None:
        self._shippable = shippable
        update_wrapper(self, shippable.function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._shippable.function(*args, **kwargs)

    @overload
    def on(self, client: Client, **options: Unpack[RunOptions]) -> RemoteFunction[P, T]: ...
    @overload
    def on(self, client: BlockingClient, **options: Unpack[RunOptions]) -> BlockingFunction[P, T]: ...
    def on(
        self, client: Client | BlockingClient, **options: Unpack[RunOptions]
    ) -> RemoteFunction[P, T] | BlockingFunction[P, T]:
        """The function as `@client.task` would have made it, with these options over its own."""
        return client.bound(self._shippable.saying(options))


class RemoteFunction(Generic[P, T]):
    """What `@client.task` makes of a function: `await f(1, y=2)` runs it in a sandbox.

    Arguments and results are JSON. Arguments are checked against annotations that JSON has values for (`int`, `list[str]`,
    `dict[str, float] | None`), results against whatever the function says that it returns: `-> date` or `-> Point`, a dataclass,
    are made from what was sent.

    It raises `NotShippable` when the function needs what a sandbox does not have, TypeError for arguments that do not fit, and
    what `Client.run` raises, with lines and file of the function's own source.
    """

    __name__: str

    def __init__(self, client: Client, shippable: Shippable[P, T]) -> None:
        self._client = client
        self._shippable = shippable
        self.local: Callable[P, T] = shippable.function
        """The plain function, to be called here."""
        update_wrapper(self, shippable.function)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        f = self._shippable
        result = await run_script(self._client, f.script, f.payload(args, kwargs), f.returns, f.of_each_task)
        return cast("T", result)

    async def submit(self, *args: P.args, **kwargs: P.kwargs) -> int:
        """Submit a call, and return its task's id."""
        f = self._shippable
        return await submit_script(self._client, f.script, f.payload(args, kwargs), f.of_each_task)

    async def result(self, task_id: int, *, seconds: float | None = None) -> T:
        """Wait for a call that was submitted, and return what it returned. See `Client.result`."""
        f = self._shippable
        return cast("T", await result_of(self._client, task_id, f.returns, f.script, seconds))

    @overload
    def map(
        self, *iterables: Iterable[Any], return_failures: Literal[True], **options: Unpack[MapOptions[Any]]
    ) -> Results[Any, T | TaskError]: ...
    @overload
    def map(
        self, *iterables: Iterable[Any], return_failures: Literal[False] = ..., **options: Unpack[MapOptions[Any]]
    ) -> Results[Any, T]: ...
    def map(
        self, *iterables: Iterable[Any], return_failures: bool = False, **options: Unpack[MapOptions[Any]]
    ) -> Results[Any, Any]:
        """Call it with each argument of an iterable, or with one of each of several, as Python's `map`. See `Client.map`.

        In pairs, and for `idempotency_key`, several arguments are a tuple.
        """
        return _map_calls(self._client, self._shippable, iterables, return_failures, options)

    def with_options(self, **options: Unpack[RunOptions]) -> Self:
        """The same function with these options over its own: `await f.with_options(tenant="acme", priority=1)(1, 2)`."""
        return type(self)(self._client, self._shippable.saying(options))


class BlockingFunction(Generic[P, T]):
    """What `@client.task` of a `BlockingClient` makes of a function: `f(1, y=2)` runs it in a sandbox. See `RemoteFunction`."""

    def __init__(self, thread: ClientThread, shippable: Shippable[P, T]) -> None:
        self._thread = thread
        self._shippable = shippable
        self.local: Callable[P, T] = shippable.function
        """The plain function, to be called here."""
        update_wrapper(self, shippable.function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._thread.call(lambda client: client.bound(self._shippable)(*args, **kwargs))

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> int:
        """See `RemoteFunction.submit`."""
        return self._thread.call(lambda client: client.bound(self._shippable).submit(*args, **kwargs))

    def result(self, task_id: int, *, seconds: float | None = None) -> T:
        """See `RemoteFunction.result`."""
        return self._thread.call(lambda client: client.bound(self._shippable).result(task_id, seconds=seconds))

    @overload
    def map(
        self, *iterables: Iterable[Any], return_failures: Literal[True], **options: Unpack[MapOptions[Any]]
    ) -> BlockingResults[Any, T | TaskError]: ...
    @overload
    def map(
        self, *iterables: Iterable[Any], return_failures: Literal[False] = ..., **options: Unpack[MapOptions[Any]]
    ) -> BlockingResults[Any, T]: ...
    def map(
        self, *iterables: Iterable[Any], return_failures: bool = False, **options: Unpack[MapOptions[Any]]
    ) -> BlockingResults[Any, Any]:
        """See `RemoteFunction.map`."""
        from continuum.client.blocking import BlockingResults

        results = _map_calls(self._thread.client, self._shippable, iterables, return_failures, options)
        return BlockingResults(self._thread, results)

    def with_options(self, **options: Unpack[RunOptions]) -> Self:
        """See `RemoteFunction.with_options`."""
        return type(self)(self._thread, self._shippable.saying(options))


def _map_calls(
    client: Client,
    shippable: Shippable[..., Any],
    iterables: Sequence[Iterable[Any]],
    return_failures: bool,
    options: MapOptions[Any],
) -> Results[Any, Any]:
    own: Any = {**shippable.of_each_task, "idempotency_key": None, **options}
    own.pop("seconds", None)
    if len(iterables) == 1:
        calls, payload_of = iterables[0], lambda argument: shippable.payload([argument], {})
    else:
        calls, payload_of = zip(*iterables, strict=False), lambda arguments: shippable.payload(arguments, {})
    return map_script(client, shippable.script, calls, shippable.returns, return_failures, own, payload_of)


@overload
def task(function: Callable[P, T], /) -> Function[P, T]: ...
@overload
def task(**options: Unpack[RunOptions]) -> Callable[[Callable[P, T]], Function[P, T]]: ...
def task(
    function: Callable[P, T] | None = None, /, **options: Unpack[RunOptions]
) -> Function[P, T] | Callable[[Callable[P, T]], Function[P, T]]:
    """Make a function one that can be run in a sandbox, before there is a client: `@continuum.task`, or
    `@continuum.task(timeout=5, requirements="six==1.17.0")`. Raises `NotShippable` for what is no plain function."""
    if function is not None:
        return Function(Shippable(function, options))
    return lambda function: Function(Shippable(function, options))
