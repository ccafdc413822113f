"""What the first HTTP services took out of a request, how they refused it, and how replies become answers."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.gateway.phase1 import agents
from workers.gateway.phase1.answers import answer_of, joined, superset
from workers.gateway.phase1.fields import (
    Given,
    Invalid,
    anything,
    body,
    flag,
    mapping,
    number,
    query,
    read_bare,
    read_fields,
    text,
    whole,
)
from workers.gateway.rest.response import Response

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
KINDS = st.sampled_from([text, number, whole, flag, mapping, anything])


@pytest.mark.parametrize(
    ("read", "given", "found"),
    [
        (text, "a", "a"),
        (number, "1.5", 1.5),
        (number, 2, 2.0),
        (whole, "3", 3),
        (whole, 4.0, 4),
        (flag, "no", False),
        (flag, True, True),
        (flag, 1, True),
        (mapping, {"a": 1}, {"a": 1}),
        (anything, [None], [None]),
    ],
)
def test_values_are_read_leniently(read: Any, given: Any, found: Any) -> None:
    """As the old services did: numbers from text, truth from words."""
    assert read_fields([body("a", read)], {"a": given}, ()) == {"a": found}


@pytest.mark.parametrize(
    ("read", "value", "kind"),
    [
        (text, 5, "string_type"),
        (number, "many", "float_type"),
        (number, "nan", "float_type"),
        (number, [1], "float_type"),
        (whole, 1.5, "int_type"),
        (whole, True, "int_type"),
        (whole, "9" * 400, "int_type"),
        (flag, "perhaps", "bool_type"),
        (flag, [1], "bool_type"),
        (mapping, [1], "dict_type"),
    ],
)
def test_what_is_of_another_kind_is_refused(read: Any, value: Any, kind: str) -> None:
    """Place, reason and kind are told in the old shape."""
    with pytest.raises(Invalid) as caught:
        read_fields([body("a", read)], {"a": value}, ())
    assert [(error["loc"], error["type"]) for error in caught.value.errors] == [(["body", "a"], kind)]


def test_every_wrong_field_is_named_at_once() -> None:
    """Those of the query beside those of the body; a missing one is told as missing."""
    with pytest.raises(Invalid) as caught:
        read_fields([body("a", text), body("b", text), query("c", whole)], {"a": 1}, [("c", "x")])
    assert [(error["loc"], error["type"]) for error in caught.value.errors] == [
        (["body", "a"], "string_type"),
        (["body", "b"], "missing"),
        (["query", "c"], "int_type"),
    ]


def test_defaults_stand_for_what_is_not_there_and_for_null() -> None:
    """A default of null leaves the field out; of a field that takes anything null is a value."""
    wanted = [body("a", text, "x"), body("b", text, None), body("c", anything), query("d", whole, 7)]
    assert read_fields(wanted, {"a": None, "c": None}, ()) == {"a": "x", "c": None, "d": 7}


def test_no_body_will_do_where_nothing_in_it_is_needed() -> None:
    """Where something is, its absence is told, and a body of another kind always."""
    assert read_fields([body("a", text, "x")], None, ()) == {"a": "x"}
    bodies: list[Any] = [None, [], "a"]
    for found in bodies:
        with pytest.raises(Invalid):
            read_fields([body("a", text)], found, ())
    with pytest.raises(Invalid):
        read_fields([body("a", text, "x")], [], ())


def test_a_bare_body_is_the_value_or_an_object_around_it() -> None:
    """A text both ways, an object only as itself; nothing where it may be left out."""
    assert read_bare("a", text, "x") == read_bare("a", text, {"a": "x"}) == "x"
    assert read_bare("a", mapping, {"a": 1}) == {"a": 1}
    assert read_bare("a", text, None, is_optional=True) is None
    bodies: list[Any] = [None, 5, [], {"b": "x"}]
    for found in bodies:
        with pytest.raises(Invalid):
            read_bare("a", text, found)


@given(st.lists(st.builds(Given, st.text(max_size=3), KINDS, st.none(), st.sampled_from(["body", "query"]))), JSON)
def test_any_json_is_read_or_refused(wanted: list[Given], found: Any) -> None:
    """Whatever comes, nothing but Invalid is raised, and its errors are JSON."""
    try:
        read_fields(wanted, found, [("a", "1")])
    except Invalid as error:
        msgspec.json.encode(error.errors)


def test_a_failure_has_the_status_of_its_route_or_of_the_bus() -> None:
    """What the agent refuses is told as the route always did, what the bus could not do as everywhere."""
    assert answer_of({"status": "ok"}, 404).status == 200
    assert answer_of({"files_removed": 0}, 404).status == 200
    assert answer_of({"error": "no"}, 404).status == 404
    own = answer_of({"status": "error", "reason": "unknown"}, 404)
    assert (own.status, own.body) == (404, b'{"detail":"unknown"}')
    assert answer_of({"status": "error", "message": "no", "code": "no_worker"}, 404).status == 503
    assert answer_of({"status": "error", "message": "no", "code": "unauthenticated"}, 500).status == 401


def test_an_answer_of_ours_keeps_its_fields() -> None:
    """What is added never replaces one; an error and an answer in pieces stay as they are."""
    native = Response(body=b'{"state":"loaded","a":1}')
    assert msgspec.json.decode(superset(native, {"state": {}, "status": "ok"}).body) == {  # type: ignore[arg-type]
        "status": "ok",
        "state": "loaded",
        "a": 1,
    }
    assert joined(native, {"status": "error", "message": "no"}) is native
    refused = Response(status=404, body=b"{}")
    assert superset(refused, {"status": "ok"}) is refused


def test_every_row_names_an_action_of_its_agent() -> None:
    """And an agent that this edge answers for."""
    from workers.gateway.legacy.agents.roster import roster

    known = {agent.name: agent for agent in roster()}
    for row in agents.ROWS:
        assert row.action in known[row.agent].actions, row
    assert set(agents.RAW.values()) <= set(known)
