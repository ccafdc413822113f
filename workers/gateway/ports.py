"""Which port each edge gets: pure decisions over what the configuration wants and what others have claimed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Literal, NamedTuple

import msgspec

from bus.settings import LegacySettings, RestSettings, Settings, SettingsError
from workers.gateway.legacy.agent import Agent

Purpose = Literal["requests", "health", "events", "errors", "http"]

# How a kind of port is written in `legacy.ports`: NAME=..., NAME.health=..., NAME.events=... and so on.
_SUFFIX: Final[dict[str, Purpose]] = {
    "": "requests",
    "health": "health",
    "events": "events",
    "errors": "errors",
    "http": "http",
}


# Added to the number of a health port that a replaced agent has for its requests.
_MOVE: Final = 10_000

_EVERYWHERE: Final = frozenset({"0.0.0.0", "::", ""})


class Wanted(NamedTuple):
    """A port that an agent is known by. rank: lower ones are given out first; port 0 takes any free one."""

    agent: str
    purpose: Purpose
    port: int
    rank: int


class Planned(NamedTuple):
    """A port, the agent that owns it, and those that share it: they answer what the owner does not understand."""

    port: int
    agent: str
    purpose: Purpose
    sharers: tuple[str, ...] = ()


class Refusal(NamedTuple):
    """A port that an agent does not get, and why."""

    agent: str
    purpose: Purpose
    port: int
    why: str


def chosen(agents: Iterable[Agent], wanted: Iterable[str]) -> tuple[Agent, ...]:
    """The agents that `legacy.agents` names, in their own order. Raises SettingsError for a name nobody has."""
    by_name = {agent.name: agent for agent in agents}
    names = set(wanted)
    unknown = sorted(names - set(by_name) - {"*"})
    if unknown:
        raise SettingsError(
            f"legacy.agents names {unknown[0]!r}, which no agent is called; allowed: *, {', '.join(by_name)}"
        )
    return tuple(agent for agent in by_name.values() if "*" in names or agent.name in names)


def plan(agents: Iterable[Agent], settings: LegacySettings) -> tuple[list[Planned], list[Refusal]]:
    """Who gets which port. Raises SettingsError for a malformed `legacy.ports`.

    A number goes to whom it is the main port of, first to the one the clients of most systems mean (the first of its
    list). An agent that wanted the same number for its requests shares it. Health ports yield to main ports.
    """
    agents = tuple(agents)
    moved = _overrides(settings.ports, {agent.name for agent in agents})
    claims: dict[int, list[Wanted]] = {}
    planned: list[Planned] = []
    refusals: list[Refusal] = []
    for wanted in sorted(_wanted(agents, moved), key=lambda one: one.rank):
        if wanted.port == 0:
            planned.append(Planned(0, wanted.agent, wanted.purpose))
        else:
            claims.setdefault(wanted.port, []).append(wanted)
    for port, wanting in claims.items():
        owner = wanting[0]
        sharers = []
        for other in wanting[1:]:
            if other.agent == owner.agent:
                continue
            if owner.purpose == other.purpose == "requests":
                sharers.append(other.agent)
            refusals.append(Refusal(other.agent, other.purpose, port, _why(owner, other)))
        planned.append(Planned(port, owner.agent, owner.purpose, tuple(sharers)))
    return planned, refusals


def _why(owner: Wanted, other: Wanted) -> str:
    if owner.purpose == other.purpose == "requests":
        return f"shared with {owner.agent}, which is asked first"
    return f"{owner.agent} has it for its {owner.purpose}"


def _wanted(agents: Iterable[Agent], moved: Mapping[tuple[str, Purpose], list[int]]) -> Iterator[Wanted]:
    for agent in agents:
        health = moved.get((agent.name, "health"), agent.health_ports)
        kinds: list[tuple[Purpose, tuple[int, ...], int]] = [
            ("requests", agent.ports, 0),
            ("events", agent.event_ports, 2),
            ("errors", agent.intake_ports, 3),
            ("health", agent.health_ports, 6),
            # The old base class served its health over HTTP too, one number up.
            ("http", agent.http_ports or tuple(port and port + 1 for port in health[:1]), 4 if agent.http else 8),
        ]
        for purpose, own, rank in kinds:
            ports = moved.get((agent.name, purpose), own)
            for place, port in enumerate(ports):
                # Numbers an agent is only also known by come after every agent's first.
                yield Wanted(agent.name, purpose, port, rank + (1 if place and purpose == "requests" else 0))


def _overrides(entries: Iterable[str], names: set[str]) -> dict[tuple[str, Purpose], list[int]]:
    moved: dict[tuple[str, Purpose], list[int]] = {}
    for entry in entries:
        left, equals, right = (part.strip() for part in entry.partition("="))
        name, _, suffix = left.partition(".")
        if not equals or suffix not in _SUFFIX:
            raise SettingsError(
                f"legacy.ports has {entry!r}; allowed: NAME[.health|.events|.errors|.http]=PORT[+PORT]... or off"
            )
        if name not in names:
            raise SettingsError(f"legacy.ports names {name!r}, which is none of the agents: {', '.join(sorted(names))}")
        moved[name, _SUFFIX[suffix]] = [] if right == "off" else [_port(entry, text) for text in right.split("+")]
    return moved


def _port(entry: str, text: str) -> int:
    if not text.strip().isdecimal() or int(text) > 65_535:
        raise SettingsError(f"legacy.ports has {entry!r}: {text!r} is no port; allowed: 0 to 65535, or off")
    return int(text)


def move_health(settings: Settings, agents: Iterable[Agent]) -> tuple[RestSettings, dict[str, str]]:
    """The HTTP settings with the health ports out of the agents' way, and why by service. Raises SettingsError.

    Clients have the agents' numbers written in, so those win (docs/legacy.md).
    """
    rest = settings.rest
    hosts = {rest.host, settings.legacy.host}
    if len(hosts) > 1 and not hosts & _EVERYWHERE:
        return rest, {}
    owners = {one.port: one.agent for one in plan(agents, settings.legacy)[0] if one.port}
    moved: dict[str, int] = {}
    why: dict[str, str] = {}
    for service in ("memory", "models", "learning"):
        key = f"{service}_health_port"
        port = getattr(rest, key)
        if port in owners:
            moved[key] = port + _MOVE
            why[service] = f"moved from {port}, which {owners[port]} has"
    return msgspec.structs.replace(rest, **moved), why
