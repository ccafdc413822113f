"""The file that bench_recall.py reads: texts in their order, and questions with the ids of the texts that answer."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import msgspec


class BadData(Exception):
    """The file cannot be used; the message says why."""


class Turn(msgspec.Struct, frozen=True):
    """One text. `time`: ISO 8601, local unless it names a zone. `caption`: of a picture that went with it."""

    id: str
    text: str
    session: int | str = 0
    time: str | None = None
    speaker: str | None = None
    caption: str | None = None

    @property
    def content(self) -> str:
        """All there is to find it by."""
        return f"{self.text} {self.caption}" if self.caption else self.text

    @property
    def at(self) -> float | None:
        """Epoch seconds."""
        return dt.datetime.fromisoformat(self.time).timestamp() if self.time else None


class Question(msgspec.Struct, frozen=True):
    """What is asked, its kind, and the ids of the turns that answer it."""

    question: str
    evidence: list[str]
    kind: str = "question"


class Conversation(msgspec.Struct, frozen=True):
    """A collection that is searched by itself: a namespace of its own."""

    id: str
    turns: list[Turn]
    questions: list[Question]

    def sessions(self) -> Iterator[tuple[str, list[Turn]]]:
        """Runs of turns of one session, with its name."""
        for session, turns in groupby(self.turns, key=lambda turn: turn.session):
            yield str(session), list(turns)

    def asked(self) -> Iterator[tuple[Question, frozenset[str]]]:
        """The questions that have evidence in the turns, with it."""
        known = {turn.id for turn in self.turns}
        for question in self.questions:
            evidence = known.intersection(question.evidence)
            if evidence:
                yield question, frozenset(evidence)

    def end(self) -> float | None:
        """When the last turn was said, epoch seconds: questions are asked after it."""
        return max((turn.at for turn in self.turns if turn.at is not None), default=None)


class _File(msgspec.Struct, frozen=True):
    conversations: list[Conversation]


def read(path: Path) -> list[Conversation]:
    """The collections in the file. Raises BadData."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_File).conversations
    except OSError as error:
        raise BadData(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise BadData(f"{path} does not have the form of docs/search.md: {error}") from error
