"""Names that complete slash commands: models, profiles, templates, sessions; looked up behind the person's back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from bus import projects, sampling
from bus.cli.chat.choices import TOOLS
from bus.cli.output import one_line, printable
from bus.settings import Settings
from schemas.bodies.model import ModelList, Models
from schemas.bodies.model_trials import ProfileList, Profiles
from schemas.errors import BusError

if TYPE_CHECKING:
    from bus.cli.chat.conversation import Conversation

Word = tuple[str, str]

# Names are looked up again when they are older than this, seconds: a new model is there when it is typed.
_FRESH_S: Final = 5.0

# A look for names that takes longer is given up, seconds.
_LOOK_S: Final = 2.0

_FIXED: Final[dict[str, tuple[Word, ...]]] = {
    "part": (
        ("prompt", "what is known of you, in the system prompt"),
        ("context", "what fits each question"),
        ("tools", "what the model looks up and keeps itself"),
    ),
    "verdict": (("good", "the answer was good"), ("bad", "it was not"), ("fix", "what it should have been")),
    "switch": (("on", "give tools to the model"), ("off", "take them away")),
    "tool": tuple((name, "") for name in TOOLS),
}


class Known:
    """What is known by now, by kind. It belongs to the loop of the conversation's client."""

    def __init__(self, conversation: Conversation, settings: Settings) -> None:
        self._conversation = conversation
        self._settings = settings
        self._found: dict[str, list[Word]] = {}
        self._looked_at = -_FRESH_S
        self._looking: asyncio.Task[None] | None = None

    def of(self, kind: str) -> list[Word]:
        """The names of a kind, each with what it is; none where the kind has no names, or none was found yet."""
        if kind == "option":
            return [(f"{name}=", sampling.allowed(name)) for name in sampling.option_names()]
        return self._found.get(kind) or list(_FIXED.get(kind, ()))

    def refresh(self) -> None:
        """Begin to look for names where those known are old; answers at once."""
        now = time.monotonic()
        if now - self._looked_at < _FRESH_S or (self._looking is not None and not self._looking.done()):
            return
        self._looked_at = now
        self._looking = asyncio.get_running_loop().create_task(self._look(), name="slash names")

    async def _look(self) -> None:
        looks: tuple[Callable[[], Awaitable[None]], ...] = (self._models, self._sessions, self._files)
        await asyncio.gather(*(self._kept_on(look) for look in looks))

    async def _kept_on(self, look: Callable[[], Awaitable[None]]) -> None:
        """What cannot be looked up now leaves what was known: completion is no place for complaints."""
        with suppress(BusError, OSError, TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                await look()

    async def _models(self) -> None:
        client = self._conversation.client
        models: Models = await client.request("model.list", ModelList())
        self._found["model"] = [(printable(one.name), one.state) for one in models.models]
        profiles: ProfileList = await client.request("model.profiles", Profiles())
        self._found["routing"] = [(printable(one.name), one_line(one.description, 60)) for one in profiles.profiles]
        self._found["chosen"] = [*self._found["model"], *self._found["routing"]]

    async def _sessions(self) -> None:
        sessions = await self._conversation.sessions()
        self._found["session"] = [
            (printable(one.session_id), one_line(str(one.metadata.get("title", "")), 60)) for one in sessions
        ]

    async def _files(self) -> None:
        self._found["template"], self._found["profile"] = await asyncio.to_thread(self._read)

    def _read(self) -> tuple[list[Word], list[Word]]:
        # Imported here: a chat begins without it.
        from bus.templates import shelf_for

        shelf = shelf_for(self._settings, self._conversation.choices.project)
        profiles = [(name, one_line(about, 60)) for name, (_, about) in projects.profiles(self._settings).items()]
        return [(name, "a template") for name in shelf.names()], profiles
