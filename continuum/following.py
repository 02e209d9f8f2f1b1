"""What all need that wait for a task or show what it writes: how often to look, and what is new."""

from __future__ import annotations

from continuum.model import Stream, TaskRecord

SHORTEST_PAUSE, LONGEST_PAUSE = 0.005, 0.25
"""Seconds between two looks at a task: the shortest while it writes or has just begun, up to the longest while nothing comes."""
LATENESS = 0.1
"""How much later an end may be seen, as part of the time that it was waited for, between the shortest and the longest pause."""
PART_OF_THE_TIME = 0.2
"""How much of its time somebody who waits for many tasks may have the database busy with questions; asked it is every
`SELDOM` seconds all the same, since an answer may be late for other reasons."""
SELDOM = 1.0
PATIENCE = 30.0
"""Seconds that the database may be unavailable while tasks are waited for."""


def waiting_pause(waited: float, answer_took: float) -> float:
    """Seconds until the next look at tasks that were waited for so long, when the last look took so long."""
    pause = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, LATENESS * waited))
    return max(pause, min(SELDOM, answer_took / PART_OF_THE_TIME))


class Transcript:
    """How much of a task's output was shown. A new attempt begins again with its own first line."""

    def __init__(self) -> None:
        self._shown = dict.fromkeys(Stream, "")
        self._attempt = 0

    def news(self, record: TaskRecord) -> list[tuple[Stream, str]]:
        """What came since the last call."""
        if record.attempt != self._attempt:
            self._attempt, self._shown = record.attempt, dict.fromkeys(Stream, "")
        found = []
        for stream, text in ((Stream.OUTPUT, record.output or ""), (Stream.ERROR, record.error_output or "")):
            if new := what_follows(self._shown[stream], text):
                found.append((stream, new))
                self._shown[stream] = text
        return found


def what_follows(shown: str, text: str) -> str:
    """The part of `text` that is new. It may not simply be longer: at the end a mark may stand where it was cut."""
    if text.startswith(shown):
        return text[len(shown) :]
    same = next((at for at, (one, other) in enumerate(zip(shown, text, strict=False)) if one != other), len(text))
    return text[same:]
