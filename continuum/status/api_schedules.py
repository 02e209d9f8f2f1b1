"""What the HTTP API does with schedules."""

from __future__ import annotations

from quart import Response, request

from continuum.config import Settings
from continuum.db.protocol import Database
from continuum.schedules import NewSchedule
from continuum.status.api_answers import answer, location
from continuum.status.api_bodies import read_body
from continuum.status.api_errors import Refusal, no_code, no_webhooks
from continuum.status.api_operations import Operation, Operations
from continuum.status.api_outputs import values_of
from continuum.status.api_parsing import parse_new_schedule, parse_schedule
from continuum.status.api_pressure import Pressure
from continuum.status.api_schedule_models import (
    NewScheduleInput,
    ScheduleInput,
    ScheduleNamed,
    ScheduleOutput,
    SchedulePage,
    SchedulePath,
    SchedulesQuery,
)

_PATH = "/schedules/{id}"
_REFUSED = {
    403: "The worker has no API_TOKEN, or for a schedule with a webhook no WEBHOOK_SECRET.",
    409: "The `code_id` names no stored script.",
}
CREATE = Operation(
    "createSchedule",
    "POST",
    "/schedules",
    "Store a schedule",
    {201: ScheduleNamed},
    body=(NewScheduleInput,),
    changes=True,
    failures=_REFUSED | {409: "There is a schedule of this name, or the `code_id` names no stored script."},
)
LIST = Operation("listSchedules", "GET", "/schedules", "List schedules", {200: SchedulePage}, query=SchedulesQuery)
FETCH = Operation("getSchedule", "GET", _PATH, "Read a schedule", {200: ScheduleOutput}, path_model=SchedulePath)
REPLACE = Operation(
    "replaceSchedule",
    "PUT",
    _PATH,
    "Store a schedule in place of what there is of this name",
    {200: ScheduleNamed},
    path_model=SchedulePath,
    body=(ScheduleInput,),
    changes=True,
    failures=_REFUSED,
)
DELETE = Operation(
    "deleteSchedule",
    "DELETE",
    _PATH,
    "Forget a schedule; its tasks stay",
    {200: ScheduleNamed},
    path_model=SchedulePath,
    changes=True,
)
PAUSE = Operation(
    "pauseSchedule",
    "POST",
    f"{_PATH}/pause",
    "Let a schedule make no tasks",
    {200: ScheduleNamed},
    path_model=SchedulePath,
    changes=True,
)
RESUME = Operation(
    "resumeSchedule",
    "POST",
    f"{_PATH}/resume",
    "Let a schedule go on, without what was due meanwhile",
    {200: ScheduleNamed},
    path_model=SchedulePath,
    changes=True,
)


class ScheduleHandlers:
    """Each method answers one operation."""

    def __init__(self, settings: Settings, database: Database, pressure: Pressure) -> None:
        self._settings = settings
        self._database = database
        self._pressure = pressure

    def serve(self, operations: Operations) -> None:
        """Add all of them to the API."""
        operations.add(CREATE, self.create)
        operations.add(LIST, self.list)
        operations.add(FETCH, self.fetch)
        operations.add(REPLACE, self.replace)
        operations.add(DELETE, self.delete)
        operations.add(PAUSE, self.pause)
        operations.add(RESUME, self.resume)

    async def create(self) -> Response:
        with self._pressure.submission(request.content_length):
            new = await read_body(self._pressure.largest_body, parse_new_schedule)
            if not await self._put(new.schedule(new.name), replace=False):
                message = f"there is a schedule {new.name}; PUT /schedules/{new.name} replaces it"
                raise Refusal(409, "schedule exists", message)
        return answer(ScheduleNamed(name=new.name), 201, location(f"/schedules/{new.name}"))

    async def replace(self, name: str) -> Response:
        with self._pressure.submission(request.content_length):
            new = await read_body(self._pressure.largest_body, parse_schedule)
            await self._put(new.schedule(name), replace=True)
        return answer(ScheduleNamed(name=name))

    async def _put(self, schedule: NewSchedule, *, replace: bool) -> bool:
        if self._settings.webhook_secret is None and schedule.task.webhook is not None:
            raise no_webhooks()
        code_id = schedule.task.code_id
        async with self._pressure.turn():
            if code_id is not None and await self._database.fetch_code(code_id) is None:
                raise no_code(code_id, status=409)
            return await self._database.put_schedule(schedule, replace=replace)

    async def list(self, query: SchedulesQuery) -> Response:
        async with self._pressure.turn():
            found = await self._database.schedules(query.limit, query.after)
        schedules = [ScheduleOutput(**values_of(each, ScheduleOutput)) for each in found]
        more = schedules[-1].name if len(schedules) == query.limit else None
        return answer(SchedulePage(schedules=schedules, next=more))

    async def fetch(self, name: str) -> Response:
        async with self._pressure.turn():
            record = await self._database.fetch_schedule(name)
        if record is None:
            raise _none(name)
        return answer(ScheduleOutput(**values_of(record, ScheduleOutput)))

    async def delete(self, name: str) -> Response:
        async with self._pressure.turn():
            return _changed(name, await self._database.remove_schedule(name))

    async def pause(self, name: str) -> Response:
        async with self._pressure.turn():
            return _changed(name, await self._database.pause_schedule(name))

    async def resume(self, name: str) -> Response:
        async with self._pressure.turn():
            return _changed(name, await self._database.pause_schedule(name, False))


def _changed(name: str, found: bool) -> Response:
    if not found:
        raise _none(name)
    return answer(ScheduleNamed(name=name))


def _none(name: str) -> Refusal:
    return Refusal(404, "no such schedule", f"there is no schedule {name}; GET /schedules lists what there is")
