"""What a replaced agent is: its ports, the words it understood and answered with, and the translation of each.

An agent is declared as data with one short function per action; this module turns any bytes a client may send into the
reply that agent would have given. It knows no socket, and of the bus only the `House` it hands on.

Source of the rules: what the agents' clients send and read, agent by agent in docs/legacy.md.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from schemas.errors import BusError

if TYPE_CHECKING:
    from workers.gateway.legacy.house import House

Reply = Any
Handle = Callable[["Fields", "House"], Awaitable[Reply]]
Health = Callable[["House"], Awaitable[dict[str, Any]]]

# Verbs that every agent answers with its health, whether or not it once did: pollers send them to every port.
HEALTH_ACTIONS: Final = ("health_check", "health", "ping")
HEALTH_COMMANDS: Final = ("HEALTH_CHECK", "PING")


class Refused(Exception):
    """A request that its agent answers with an error; `extra` are keys the error reply has beside the text."""

    def __init__(self, text: str, **extra: Any) -> None:
        super().__init__(text)
        self.text = text
        self.extra = extra


class Fields(dict[str, Any]):
    """The fields of a request, read leniently: what can be understood is, what cannot is refused by name."""

    def text(self, name: str, default: str = "") -> str:
        """Text; numbers are read as text. Raises Refused."""
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, str):
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        raise Refused(f"{name} must be text, not {_kind(value)}")

    def number(self, name: str, default: float) -> float:
        """A finite number; numeric text is read as one. Raises Refused."""
        value = self.get(name)
        if value is None:
            return default
        try:
            number = float(value) if not isinstance(value, bool) else None
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is None or number != number or number in (float("inf"), float("-inf")):
            raise Refused(f"{name} must be a number, not {_shown(value)}")
        return number

    def whole(self, name: str, default: int, *, low: int = 0, high: int = 1_000) -> int:
        """A whole number, brought into `low` to `high`. Raises Refused for what is no number."""
        return max(low, min(high, int(self.number(name, default))))

    def flag(self, name: str, default: bool) -> bool:
        """A truth value, as Python would see it."""
        value = self.get(name)
        return default if value is None else bool(value)

    def mapping(self, name: str) -> dict[str, Any]:
        """An object; empty where it is absent. Raises Refused."""
        value = self.get(name)
        if value is None:
            return {}
        if isinstance(value, dict):
            return value
        raise Refused(f"{name} must be an object, not {_kind(value)}")

    def items_of(self, name: str) -> list[Any]:
        """An array; empty where it is absent. Raises Refused."""
        value = self.get(name)
        if value is None:
            return []
        if isinstance(value, list):
            return value
        raise Refused(f"{name} must be an array, not {_kind(value)}")


class Action(msgspec.Struct, frozen=True):
    """One thing an agent does.

    required: fields that must be there and not empty (0, false, "", [] and {} count as empty, as in the old code);
    missing: what is said otherwise, `{field}` being the first one missing.
    """

    handle: Handle
    required: tuple[str, ...] = ()
    missing: str = "Missing {field}"


class Words(msgspec.Struct, frozen=True, kw_only=True):
    """How an agent words its failures. The text stands under every key of `error_keys`."""

    error: str = "error"
    error_keys: tuple[str, ...] = ("message", "error")
    unknown: str = "Unknown action: {verb}"
    no_verb: str = "Unknown action: None"
    not_object: str = "Invalid request format"
    bad_json: str = "Invalid JSON request"
    bad_text: str = "Invalid UTF-8 request"


class HttpAsk(msgspec.Struct, frozen=True):
    """A request on an HTTP port of an agent: its query, and its body read as JSON (None where there is none)."""

    query: Mapping[str, str]
    body: Any = None


class HttpRoute(msgspec.Struct, frozen=True):
    """What an agent answers over HTTP. handle: gives the status code and the value of the JSON body."""

    method: str
    path: str
    handle: Callable[[HttpAsk, House], Awaitable[tuple[int, Any]]]


class Agent(msgspec.Struct, frozen=True, kw_only=True):
    """One replaced agent.

    ports: where it answers requests, the seed's number first, then others under which clients know it. health_ports:
    where any message is answered with its health. event_ports: where it publishes. data_key: the field that holds the
    arguments (`data`), empty where they stand at the top. actions and commands: by the values of `action` and
    `command`. typeless: answers requests with neither. texts: answers to frames that are no JSON. echoes:
    keys of a request that every reply has, too ("" where the request has none). health: what its health reply holds
    beside the common keys, which it may replace. health_socket: the whole reply of its health ports
    to a decoded message (None where it does not decode), where that is not the health of its main port. intake_ports
    and intake: where others publish to it, and what is done with their messages. http_ports and http: what it answers
    over HTTP. tasks: run as long as its ports are bound. service: whose absence degrades it.
    """

    name: str
    service: str
    kind: str = "agent"
    ports: tuple[int, ...] = ()
    health_ports: tuple[int, ...] = ()
    event_ports: tuple[int, ...] = ()
    intake_ports: tuple[int, ...] = ()
    http_ports: tuple[int, ...] = ()
    data_key: str = ""
    actions: Mapping[str, Action] = {}
    commands: Mapping[str, Action] = {}
    typeless: Handle | None = None
    texts: Mapping[str, Handle] = {}
    echoes: tuple[str, ...] = ()
    words: Words = Words()
    health: Health | None = None
    health_socket: Callable[[Any, House], Awaitable[Reply]] | None = None
    intake: Callable[[list[bytes], House], Awaitable[None]] | None = None
    http: tuple[HttpRoute, ...] = ()
    tasks: tuple[Callable[[House], Awaitable[None]], ...] = ()
    timeout_s: float | None = None

    def understands(self, request: object) -> bool:
        """True where this agent has an answer of its own; agents that share a port are asked in turn."""
        if isinstance(request, str):
            return request in self.texts
        if not isinstance(request, dict):
            return False
        if isinstance(action := request.get("action"), str):
            return action in self.actions
        if isinstance(command := request.get("command"), str):
            return command in self.commands
        return self.typeless is not None

    async def answer(self, request: object, house: House) -> Reply:
        """The reply to a decoded request, whatever it is; raises nothing but CancelledError."""
        reply, is_done = await self._guarded(self._answer(request, house), house)
        house.note(self.name, "ok" if is_done else "failed")
        if self.echoes and isinstance(reply, dict):
            asked = request if isinstance(request, dict) else {}
            return {**reply, **{key: asked.get(key, "") for key in self.echoes}}
        return reply

    async def healthy(self, message: object, house: House) -> Reply:
        """The reply of its health ports to any message; raises nothing but CancelledError."""
        socket = self.health_socket
        reply, _ = await self._guarded(house.health_of(self) if socket is None else socket(message, house), house)
        return reply

    async def _guarded(self, answering: Awaitable[Reply], house: House) -> tuple[Reply, bool]:
        """The reply, and whether it is what was asked for."""
        try:
            return await answering, True
        except Refused as refused:
            return self.failure(refused.text, **refused.extra), False
        except BusError as error:
            return self.failure(error.message, code=error.code), False
        except (UnicodeEncodeError, OverflowError) as error:
            # JSON text can hold half a character, and numbers past 64 bits; the bus cannot.
            return self.failure(f"a field holds what cannot be kept: {error}"), False
        except Exception as error:  # noqa: BLE001 - the dispatch: the client is told, as the old loop did
            house.on_failure(self, error)
            return self.failure(f"{type(error).__name__}: {error}"), False

    def failure(self, text: str, **extra: Any) -> dict[str, Any]:
        """The reply that says what went wrong."""
        empty = dict.fromkeys(self.echoes, "")
        return {"status": self.words.error, **dict.fromkeys(self.words.error_keys, text), **empty, **extra}

    async def _answer(self, request: object, house: House) -> Reply:
        if isinstance(request, str):
            return await self.texts[request](Fields(), house)
        if not isinstance(request, dict):
            raise Refused(self.words.not_object)
        action, command = request.get("action"), request.get("command")
        if action is not None:
            return await self._act(str(action), request, house)
        if command is not None:
            return await self._command(str(command), request, house)
        if self.typeless is not None:
            return await self.typeless(Fields(request), house)
        raise Refused(self.words.no_verb)

    async def _act(self, verb: str, request: dict[str, Any], house: House) -> Reply:
        known = self.actions.get(verb)
        if known is None:
            if verb in HEALTH_ACTIONS:
                return await house.health_of(self)
            raise Refused(self.words.unknown.format(verb=verb))
        return await self._run(known, request, house)

    async def _command(self, verb: str, request: dict[str, Any], house: House) -> Reply:
        known = self.commands.get(verb)
        if known is None:
            if verb in HEALTH_COMMANDS:
                health = await house.health_of(self)
                # A ping asks for this agent alone, a health check for what stands behind it too.
                return {**health, "status": "SUCCESS" if verb == "PING" or health["ready"] else "ERROR"}
            raise Refused(self.words.unknown.format(verb=verb), status="ERROR")
        return await self._run(known, request, house)

    async def _run(self, action: Action, request: dict[str, Any], house: House) -> Reply:
        fields = Fields(request)
        if self.data_key:
            data = request.get(self.data_key)
            if data is not None and not isinstance(data, dict):
                raise Refused(f"{self.data_key} must be an object, not {_kind(data)}")
            fields = Fields(data or {})
        for name in action.required:
            if not fields.get(name):
                raise Refused(action.missing.format(field=name))
        return await action.handle(fields, house)


def decode(frame: bytes) -> object:
    """A request as its client's JSON encoder wrote it: also with NaN, Infinity and lone surrogates.

    Raises UnicodeDecodeError for what is no UTF-8, ValueError for what is no JSON.
    """
    try:
        return msgspec.json.decode(frame)
    except (msgspec.DecodeError, RecursionError):
        text = frame.decode("utf-8")
        try:
            return json.loads(text)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error


def encode(reply: Reply) -> bytes:
    """A reply as JSON text; what msgspec cannot write, Python's encoder writes with escapes."""
    try:
        return msgspec.json.encode(reply)
    except (TypeError, ValueError, OverflowError):
        return json.dumps(reply, default=str).encode()
    except RecursionError:
        # What came is repeated, and Python's decoder reads what neither encoder writes.
        return b'{"status":"error","message":"the reply is nested too deeply","error":"the reply is nested too deeply"}'


def _kind(value: object) -> str:
    kinds = {
        dict: "an object",
        list: "an array",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return kinds.get(type(value), "null")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
