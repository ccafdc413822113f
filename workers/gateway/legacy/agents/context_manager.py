"""ContextManager (7111): one window of what was said last, by importance, and a window for each speaker.

It lives as long as the process, as it did: whoever needs more keeps contexts (`memory.context.*`).
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict, deque
from typing import Any, Final

from workers.gateway.legacy.agent import Action, Agent, Fields, Reply
from workers.gateway.legacy.agents.health_sockets import health_socket
from workers.gateway.legacy.house import House

NAME: Final = "ContextManager"

# Items of the window: at first, and between which bounds it grows and shrinks; items of a speaker's window.
FIRST_SIZE: Final = 10
SIZES: Final = (5, 20)
SPEAKER_SIZE: Final = 20

# The window grows by two while what is said is important on the whole, and shrinks by one while it is not.
GROWS_ABOVE: Final = 0.7
SHRINKS_BELOW: Final = 0.3

# Speakers with a window; the one who was silent longest goes first.
SPEAKERS_MAX: Final = 1_000

# Below this importance an item may be pruned.
_PRUNED_BELOW: Final = 0.5

_WEIGHTY: Final = (
    "remember",
    "don't forget",
    "important",
    "critical",
    "essential",
    "alalahanin",
    "tandaan",
    "mahalaga",
    "importante",
    "kailangan",
)
_REQUEST: Final = re.compile(
    r"\b(?:please|paki|pakiusap|(?:can|could|would) you|i (?:want|need|would like)|gusto ko|kailangan ko)\b"
)
_MANY_WORDS: Final = 15

Item = dict[str, Any]


def importance(text: str) -> float:
    """0.5 to 1: more for words that ask to be remembered, for questions, for requests, for long sentences."""
    lower = text.lower()
    score = 0.5
    score += 0.2 if any(word in lower for word in _WEIGHTY) else 0.0
    score += 0.1 if "?" in text else 0.0
    score += 0.1 if _REQUEST.search(lower) else 0.0
    score += 0.1 if len(text.split()) > _MANY_WORDS else 0.0
    return min(score, 1.0)


class Window:
    """What was said last, by all and by each."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque(maxlen=FIRST_SIZE)
        self._by_speaker: OrderedDict[str, deque[Item]] = OrderedDict()
        self._scored = 0
        self._score_sum = 0.0

    @property
    def size(self) -> int:
        """Items that the window of all holds at most."""
        return self._items.maxlen or 0

    def add(self, text: str, speaker: str | None, metadata: Any, now: float) -> None:
        """Take in what somebody said."""
        item: Item = {
            "text": text,
            "timestamp": now,
            "speaker": speaker,
            "importance": importance(text),
            "metadata": metadata,
        }
        self._items.append(item)
        if speaker is not None:
            self._by_speaker.setdefault(speaker, deque(maxlen=SPEAKER_SIZE)).append(item)
            self._by_speaker.move_to_end(speaker)
            if len(self._by_speaker) > SPEAKERS_MAX:
                self._by_speaker.popitem(last=False)
        self._scored += 1
        self._score_sum += item["importance"]
        self._fit()

    def items(self, speaker: str | None, limit: int) -> list[Item]:
        """The most important first, the newest among equals; all of them for a limit below 1.

        A speaker nobody knows has the window of all.
        """
        found = self._items if speaker is None else self._by_speaker.get(speaker, self._items)
        newest_first = list(found)[::-1]
        ranked = sorted(newest_first, key=lambda item: item["importance"], reverse=True)
        return ranked[:limit] if limit > 0 else ranked

    def clear(self, speaker: str | None) -> None:
        """Empty the window of a speaker alone, or of all alone."""
        if speaker is None:
            self._items.clear()
        else:
            self._by_speaker.pop(speaker, None)

    def prune(self) -> int:
        """Drop the least important items of a full window, a quarter of it at most; how many went."""
        if len(self._items) < self.size:
            return 0
        weak = sorted(
            (item for item in self._items if item["importance"] < _PRUNED_BELOW), key=lambda item: item["importance"]
        )
        gone = {id(item) for item in weak[: max(1, self.size // 4)]}
        self._items = deque((item for item in self._items if id(item) not in gone), maxlen=self.size)
        return len(gone)

    def _fit(self) -> None:
        mean = self._score_sum / self._scored
        size = self.size + (2 if mean > GROWS_ABOVE else -1 if mean < SHRINKS_BELOW else 0)
        size = max(SIZES[0], min(SIZES[1], size))
        if size != self.size:
            self._items = deque(self._items, maxlen=size)


def _window(house: House) -> Window:
    return house.state(NAME, Window)


def _speaker(ask: Fields) -> str | None:
    return ask.text("speaker") or None


def _items(ask: Fields, house: House) -> list[Item]:
    return _window(house).items(_speaker(ask), int(ask.number("max_items", 0)))


async def add_to_context(ask: Fields, house: House) -> Reply:
    """Nothing said is no error, and adds nothing."""
    text = ask.text("text")
    if text:
        _window(house).add(text, _speaker(ask), ask.get("metadata") or {}, time.time())
    return {"status": "success", "message": "Added to context"}


async def get_context(ask: Fields, house: House) -> Reply:
    return {"status": "success", "context": _items(ask, house)}


async def get_context_text(ask: Fields, house: House) -> Reply:
    lines = [f"[{item['speaker']}]: {item['text']}" if item["speaker"] else item["text"] for item in _items(ask, house)]
    return {"status": "success", "context_text": "\n".join(lines)}


async def clear_context(ask: Fields, house: House) -> Reply:
    _window(house).clear(_speaker(ask))
    return {"status": "success", "message": "Context cleared"}


async def prune_context(ask: Fields, house: House) -> Reply:
    return {"status": "success", "message": f"Context pruned: {_window(house).prune()} items removed"}


AGENT = Agent(
    name=NAME,
    service="memory",
    kind="context_manager",
    ports=(7111,),
    health_ports=(8111, 7112),
    actions={
        "add_to_context": Action(add_to_context),
        "get_context": Action(get_context),
        "get_context_text": Action(get_context_text),
        "clear_context": Action(clear_context),
        "prune_context": Action(prune_context),
    },
    health_socket=health_socket(NAME),
)
