"""Which port each edge gets, on paper."""

from __future__ import annotations

import msgspec
import pytest

from bus.settings import LegacySettings, Settings, SettingsError
from workers.gateway.legacy.agent import Agent
from workers.gateway.legacy.agents.roster import roster
from workers.gateway.ports import Planned, chosen, move_health, plan

FIRST = Agent(name="First", service="memory", ports=(100,), health_ports=(200,))
SECOND = Agent(name="Second", service="memory", ports=(200, 100), health_ports=(201,))


def wanting(**changes: object) -> Settings:
    """Settings with the legacy ports on."""
    legacy = LegacySettings(enabled=True)
    return msgspec.structs.replace(Settings(), legacy=msgspec.structs.replace(legacy, **changes))


def owners(planned: list[Planned]) -> dict[int, tuple[str, str, tuple[str, ...]]]:
    return {one.port: (one.agent, one.purpose, one.sharers) for one in planned}


def test_a_main_port_wins_over_a_health_port_and_a_first_number_over_a_second() -> None:
    """The agent whose clients mean a number has it; the other is told why it has not."""
    planned, refused = plan((FIRST, SECOND), wanting().legacy)
    assert owners(planned)[200] == ("Second", "requests", ())
    assert owners(planned)[100] == ("First", "requests", ("Second",))
    assert {(one.agent, one.purpose, one.port): one.why for one in refused} == {
        ("First", "health", 200): "Second has it for its requests",
        ("Second", "requests", 100): "shared with First, which is asked first",
    } | {(one.agent, one.purpose, one.port): one.why for one in refused if one.purpose == "http"}


@pytest.mark.parametrize(
    ("entry", "port", "expected"),
    [
        ("First=300", 300, ("First", "requests", ())),
        ("First=300+301", 301, ("First", "requests", ())),
        ("First.health=302", 302, ("First", "health", ())),
    ],
)
def test_numbers_are_given_in_the_settings(entry: str, port: int, expected: object) -> None:
    """Each kind of port of each agent can be moved by itself."""
    planned, _ = plan((FIRST,), wanting(ports=(entry,)).legacy)
    assert owners(planned)[port] == expected


@pytest.mark.parametrize(
    ("entries", "http"),
    [((), 201), (("First.health=302",), 303), (("First.health=0",), 0), (("First.health=302", "First.http=9"), 9)],
)
def test_health_over_http_follows_the_health_port(entries: tuple[str, ...], http: int) -> None:
    """One number up from where the health port was moved to, unless it has a number of its own."""
    planned, _ = plan((FIRST,), wanting(ports=entries).legacy)
    assert [one.port for one in planned if one.purpose == "http"] == [http]


def test_a_port_can_be_left_out() -> None:
    """`off` binds nothing."""
    planned, refused = plan((FIRST,), wanting(ports=("First=off", "First.health=off")).legacy)
    assert (planned, refused) == ([], [])


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("Nobody=1", "names 'Nobody', which is none of the agents: First"),
        ("First", "allowed: NAME"),
        ("First.colour=1", "allowed: NAME"),
        ("First=70000", "'70000' is no port; allowed: 0 to 65535, or off"),
        ("First=x", "'x' is no port"),
        ("First=1+", "'' is no port"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(entry: str, why: str) -> None:
    """The message names the entry and what is allowed."""
    with pytest.raises(SettingsError, match=why.replace("(", "\\(")):
        plan((FIRST,), wanting(ports=(entry,)).legacy)


def test_agents_are_chosen_by_name() -> None:
    """A name nobody has is refused with the names there are."""
    assert chosen((FIRST, SECOND), ("Second",)) == (SECOND,)
    assert chosen((FIRST, SECOND), ("*",)) == (FIRST, SECOND)
    with pytest.raises(SettingsError, match=r"names 'Third', which no agent is called; allowed: \*, First, Second"):
        chosen((FIRST, SECOND), ("Third",))


def test_every_agent_of_the_roster_has_its_first_number_on_one_machine() -> None:
    """All agents together on one host: no two first numbers collide, and the health ports of ours yield."""
    agents = roster()
    planned, _ = plan(agents, wanting().legacy)
    held = owners(planned)
    for agent in agents:
        for port in agent.ports[:1]:
            assert held[port][:2] == (agent.name, "requests")
        for port in (*agent.event_ports, *agent.intake_ports):
            assert held[port][0] == agent.name
    rest, why = move_health(wanting(), agents)
    assert (rest.models_health_port, rest.learning_health_port) == (17_111, 17_112)
    assert why["models"] == "moved from 7111, which ContextManager has"


def test_health_ports_stay_where_the_agents_are_on_another_address() -> None:
    """Two addresses know no collision."""
    rest, why = move_health(wanting(host="127.0.0.2"), roster())
    assert (rest.models_health_port, why) == (7_111, {})


def test_every_name_is_unique_and_says_what_it_serves() -> None:
    """Discovery looks agents up by name."""
    agents = roster()
    assert len({agent.name for agent in agents}) == len(agents)
    assert {agent.service for agent in agents} <= {"memory", "model", "learning", "resource", "bus"}
