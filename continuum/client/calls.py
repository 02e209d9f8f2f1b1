"""What `run`, `map` and functions do with a script, once it is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from continuum.client.errors import TaskError, TaskNotFound
from continuum.client.mapping import IN_FLIGHT, Manner, Results, Work
from continuum.client.results import decoder
from continuum.client.sources import Script, printing_result
from continuum.client.tasks import MapOptions, RunOptions, task_of
from continuum.model import NewTask

if TYPE_CHECKING:
    from continuum.client.trio_client import Client

X = TypeVar("X")


async def run_script(client: Client, script: Script, payload: object, returns: object, options: RunOptions) -> Any:
    """See `Client.run`."""
    seconds, wanted = options.pop("seconds", None), options.pop("cancel_on_exit", None)
    decode = decoder(returns, script)
    text = script.text if returns is None else printing_result(script.text)
    task = task_of(script, text, payload, options)
    (task_id,) = await client.submit_known([task])
    try:
        return decode(await client.wait(task_id, seconds))
    except (TaskError, TaskNotFound):
        raise
    except BaseException:
        if (task.idempotency_key is None and not task.unique) if wanted is None else wanted:
            await client.give_up([task_id])
        raise


async def submit_script(client: Client, script: Script, payload: object, options: RunOptions) -> int:
    """`Client.submit` of a script that prints its result."""
    options.pop("seconds", None)
    options.pop("cancel_on_exit", None)
    (task_id,) = await client.submit_many([task_of(script, printing_result(script.text), payload, options)])
    return task_id


async def result_of(client: Client, task_id: int, returns: object, script: Script | None, seconds: float | None) -> Any:
    """See `Client.result`. script: what was shipped, where that is known."""
    decode = decoder(returns, script)
    return decode(await client.wait(task_id, seconds))


def map_script(
    client: Client,
    script: Script,
    payloads: Iterable[X],
    returns: object,
    return_failures: bool,
    options: MapOptions[X],
    payload_of: Callable[[X], object] = lambda payload: payload,
) -> Results[X, Any]:
    """See `Client.map`. payload_of: what a script gets of each payload."""
    manner = Manner(return_failures, options.pop("cancel_on_exit", None), options.pop("in_flight", IN_FLIGHT))
    shown_as = (options.get("name") or script.shown_as) if options.pop("progress", False) else None
    key = options.pop("idempotency_key", None)
    text = script.text if returns is None else printing_result(script.text)

    def task(payload: X) -> NewTask:
        own = {} if key is None else {"idempotency_key": key(payload)}
        return task_of(script, text, payload_of(payload), {**options, **own})

    return Results(client, Work(payloads, task, key is not None, decoder(returns, script), manner, shown_as))
