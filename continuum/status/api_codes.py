"""What the HTTP API does with stored scripts."""

from __future__ import annotations

from quart import Response, request

from continuum.db.protocol import Database
from continuum.status.api_answers import answer, code_answer, location
from continuum.status.api_bodies import read_body
from continuum.status.api_errors import no_code
from continuum.status.api_inputs import CodesQuery
from continuum.status.api_outputs import CodePage, CodeSummaryOutput, StoredCode, values_of
from continuum.status.api_parsing import parse_code
from continuum.status.api_pressure import Pressure


class CodeHandlers:
    """Each method answers one operation."""

    def __init__(self, database: Database, pressure: Pressure) -> None:
        self._database = database
        self._pressure = pressure

    async def store(self) -> Response:
        with self._pressure.submission(request.content_length):
            new = await read_body(self._pressure.largest_body, parse_code)
            async with self._pressure.turn():
                code_id = await self._database.store_code(new.code, new.requirements, new.retry)
        return answer(StoredCode(id=code_id), 201, location(f"/codes/{code_id}"))

    async def fetch(self, code_id: str) -> Response:
        async with self._pressure.turn():
            code = await self._database.fetch_code(code_id)
        if code is None:
            raise no_code(code_id)
        return code_answer(code)

    async def list(self, query: CodesQuery) -> Response:
        async with self._pressure.turn():
            found = await self._database.codes(query.limit, query.after)
        codes = [CodeSummaryOutput(**values_of(code, CodeSummaryOutput)) for code in found]
        return answer(CodePage(codes=codes, next=codes[-1].id if len(codes) == query.limit else None))
