"""Batches as the dashboard shows them, and as clients ask for them."""

from __future__ import annotations

import pytest

from continuum.client import Client, TaskNotFound
from continuum.db.memory import MemoryDatabase
from continuum.model import BatchProgress, NewTask
from tests.unit.test_status_app import client


async def with_a_batch() -> MemoryDatabase:
    database = MemoryDatabase()
    await database.submit([NewTask(code="x", batch="a&b", tenant="t")] * 3)
    await database.submit([NewTask(code="x", depends_batch="a&b", tenant="t"), NewTask(code="x", name="other")])
    await database.cancel(1)
    return database


@pytest.mark.parametrize(("task_id", "said"), [(2, "<dt>Batch</dt><dd>"), (4, "<dt>Comes after</dt><dd>the batch ")])
async def test_the_page_of_a_task_shows_its_batch_or_that_which_it_waits_for(task_id: int, said: str) -> None:
    asking = client(await with_a_batch())
    shown = await (await asking.get(f"/ui/tasks/{task_id}")).get_data(as_text=True)
    link = '<a href="/ui/tasks?tenant=t&amp;batch=a%26b">a&amp;b</a>'
    assert f"{said}{link}: 1 of 3 ended, 1 not completed</dd>" in shown


async def test_the_list_of_tasks_shows_those_of_a_batch() -> None:
    asking = client(await with_a_batch())
    shown = await (await asking.get("/ui/tasks?batch=a%26b")).get_data(as_text=True)
    assert "Only tasks of the batch <code>a&amp;b</code>" in shown
    assert '<input type="hidden" name="batch" value="a&amp;b">' in shown
    assert [f"#{number}<" in shown for number in range(1, 6)] == [True] * 3 + [False] * 2


async def test_a_client_is_told_how_a_batch_stands() -> None:
    async with Client(database=await with_a_batch()) as asking:
        assert await asking.batch("a&b", "t") == BatchProgress("a&b", pending=2, cancelled=1)
        with pytest.raises(TaskNotFound, match=r"there is no task of the batch 'a&b'$"):
            await asking.batch("a&b")
