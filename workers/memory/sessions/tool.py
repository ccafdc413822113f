"""The memory as tools of a model: their descriptions, and calls as a model writes them, right or wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, NamedTuple, Protocol

import msgspec
from msgspec import Meta

from schemas.bodies import memory, search
from schemas.bodies.base import Key, Namespace
from schemas.bodies.memory import Category
from schemas.bodies.sessions import ToolCall, ToolResult, ToolSchemaList, ToolSchemas
from schemas.errors import BadRequest, NotFound, Rejected
from workers.memory.sessions.bridge import day
from workers.memory.sessions.finder import Finder, search_spaces
from workers.memory.text import check_texts

# Characters of one found text that go back to the model.
SHOWN_CHARACTERS: Final = 1_000

# Where facts, memories and documents lie unless whoever wrote them said otherwise; the first is where a call goes.
USUAL_NS: Final = ("user", "memory", "kb")

# Known keys named to a model that asked for one that is not there.
NAMED_KEYS: Final = 10


class Facts(Protocol):
    """The facts that the tools read and write."""

    async def remember(self, request: memory.Remember, request_id: bytes) -> memory.Fact:
        """`memory.remember`."""

    async def recall(self, request: memory.Recall, request_id: bytes) -> memory.Fact:
        """`memory.recall`."""

    async def find(self, request: memory.Find) -> memory.FactPage:
        """`memory.find`."""

    async def forget(self, request: memory.Forget, request_id: bytes) -> memory.Forgotten:
        """`memory.forget`."""

    async def all(self, request: memory.AllFacts) -> memory.FactPage:
        """`memory.all`."""


class _Arguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Arguments of a tool; the descriptions are for the model."""


class _Remember(_Arguments, frozen=True, kw_only=True):
    key: Annotated[Key, Meta(description="Short name of what is remembered, such as 'favourite colour'.")]
    value: Annotated[str, Meta(min_length=1, max_length=65_536, description="What is to be remembered.")]
    category: Annotated[
        Category, Meta(description="What kind it is: fact, preference, context, or a word of your own.")
    ] = "fact"


class _Recall(_Arguments, frozen=True, kw_only=True):
    key: Annotated[Key, Meta(description="The name it was remembered under.")]


class _SearchMemory(_Arguments, frozen=True, kw_only=True):
    query: Annotated[str, Meta(min_length=1, max_length=4096, description="What to look for, in plain words.")]
    limit: Annotated[int, Meta(ge=1, le=20, description="Results, at most.")] = 5


class _Forget(_Arguments, frozen=True, kw_only=True):
    key: Annotated[Key, Meta(description="The name it was remembered under.")]


class _Tool(NamedTuple):
    arguments: type[_Arguments]
    description: str


_TOOLS: Final = {
    "remember": _Tool(_Remember, "Remember a fact or preference for later conversations. The same key replaces it."),
    "recall": _Tool(_Recall, "Read what was remembered under a key."),
    "search_memory": _Tool(_SearchMemory, "Search everything that was remembered, by words or by meaning."),
    "forget": _Tool(_Forget, "Forget what was remembered under a key, for good."),
}


class MemoryTool:
    """Answers calls of a model. What is wrong with a call is said in the result, so that the model can try again."""

    def __init__(self, facts: Facts, finder: Finder) -> None:
        self._facts = facts
        self._finder = finder
        self._run: dict[str, Callable[[Any, ToolCall, bytes], Awaitable[ToolResult]]] = {
            "remember": self._remember,
            "recall": self._recall,
            "search_memory": self._search,
            "forget": self._forget,
        }

    async def schemas(self, request: ToolSchemas) -> ToolSchemaList:
        """The tools in the form of a chat request. Raises NotFound for a name that is none of them."""
        names = list(_TOOLS) if request.names is None else request.names
        unknown = [name for name in names if name not in _TOOLS]
        if unknown:
            raise NotFound(f"there is no tool {unknown[0]!r}, there are: {', '.join(_TOOLS)}", name=unknown[0])
        return ToolSchemaList(tools=[_schema(name) for name in dict.fromkeys(names)])

    async def call(
        self, request: ToolCall, request_id: bytes, may_touch: Callable[[str], bool] = lambda ns: True
    ) -> ToolResult:
        """Do what the model asked for; a write happens once for its request id.

        may_touch: of the namespaces that the request does not name, those that its caller may reach.
        """
        if request.search_ns is None:
            request = msgspec.structs.replace(request, search_ns=_searched(request.ns, may_touch))
        tool = _TOOLS.get(request.name)
        if tool is None:
            return _refused(request.name, f"There is no tool {request.name!r}. There are: {', '.join(_TOOLS)}.")
        try:
            arguments = _read(tool.arguments, request.arguments)
        except (msgspec.MsgspecError, UnicodeError, RecursionError, BadRequest) as error:
            return _refused(request.name, f"The arguments were not understood: {error}. {_usage(tool)}")
        try:
            return await self._run[request.name](arguments, request, request_id)
        except Rejected as error:
            return _refused(request.name, f"{error.message}.")

    async def _remember(self, arguments: _Remember, request: ToolCall, request_id: bytes) -> ToolResult:
        fact = await self._facts.remember(
            memory.Remember(
                key=arguments.key,
                value=arguments.value,
                category=arguments.category,
                source=request.source,
                ns=request.ns,
            ),
            request_id,
        )
        return _done(request.name, f"Remembered {fact.key!r}: {_short(fact.value)}")

    async def _recall(self, arguments: _Recall, request: ToolCall, request_id: bytes) -> ToolResult:
        try:
            fact = await self._facts.recall(memory.Recall(key=arguments.key, ns=request.ns), request_id)
        except NotFound:
            return _refused(request.name, await self._unknown(arguments.key, request.ns))
        return _done(request.name, f"{fact.key}: {fact.value}")

    async def _search(self, arguments: _SearchMemory, request: ToolCall, request_id: bytes) -> ToolResult:
        # Turns stay out: sessions of several users share a namespace, and a tool call names no user.
        asked = search.Search(
            query=arguments.query,
            k=arguments.limit,
            filters=search.Filters(kinds=["memory", "document", "fact"]),
        )
        hits, _ = await search_spaces(self._finder, asked, request.search_ns or [request.ns])
        # What is kept in two places is said once.
        lines = list(dict.fromkeys(f"- [{day(hit.at)}] {_short(hit.text)}" for _, hit in hits))
        return _done(request.name, "\n".join(lines[: arguments.limit]) or "Nothing was found.")

    async def _forget(self, arguments: _Forget, request: ToolCall, request_id: bytes) -> ToolResult:
        forgotten = await self._facts.forget(memory.Forget(key=arguments.key, ns=request.ns), request_id)
        if not forgotten.forgotten:
            return _refused(request.name, await self._unknown(arguments.key, request.ns))
        return _done(request.name, f"Forgot {arguments.key!r}.")

    async def _unknown(self, key: str, ns: Namespace) -> str:
        """What to say about a key that is not there: the keys that look like it, else some that are there."""
        near = (await self._facts.find(memory.Find(query=key[:4096], ns=ns, limit=NAMED_KEYS))).facts
        known = near or (await self._facts.all(memory.AllFacts(ns=ns, limit=NAMED_KEYS))).facts
        hint = f" Keys that are known: {', '.join(repr(fact.key) for fact in known)}." if known else ""
        return f"Nothing is known as {key!r}.{hint}"


def _searched(ns: str, may_touch: Callable[[str], bool]) -> list[str]:
    """Where a call is looked up that names no place: only whoever has not chosen a namespace means all the usual ones."""
    if ns != USUAL_NS[0]:
        return [ns]
    return [ns, *filter(may_touch, USUAL_NS[1:])]


def _read(arguments: type[_Arguments], given: Any) -> _Arguments:
    """The arguments as the tool takes them; models write a map, the JSON text of one, and numbers as text."""
    if isinstance(given, str):
        given = msgspec.json.decode(given) if given.strip() else {}
    read = msgspec.convert(given if given is not None else {}, arguments, strict=False)
    check_texts(read)
    return read


def _schema(name: str) -> dict[str, Any]:
    tool = _TOOLS[name]
    _, components = msgspec.json.schema_components([tool.arguments])
    schema = components[tool.arguments.__name__]
    parameters = {
        "type": "object",
        "properties": schema["properties"],
        "required": schema["required"],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": tool.description, "parameters": parameters}}


def _usage(tool: _Tool) -> str:
    fields = msgspec.structs.fields(tool.arguments)
    needed = ", ".join(field.name for field in fields if field.required)
    others = ", ".join(field.name for field in fields if not field.required)
    return f"Needed: {needed}." + (f" Optional: {others}." if others else "")


def _done(name: str, content: str) -> ToolResult:
    return ToolResult(name=name, ok=True, content=content)


def _refused(name: str, content: str) -> ToolResult:
    return ToolResult(name=name, ok=False, content=content)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else line[:SHOWN_CHARACTERS] + " ..."
