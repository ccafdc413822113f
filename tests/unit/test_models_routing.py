"""Routing: which model a profile chooses, what is passed over and why, and what a request's `model` means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bus.settings import ModelSettings
from schemas.bodies.model import Chat, ChatMessage, ModelInfo
from schemas.bodies.model_trials import ModelLimits, Profiles, Route
from schemas.errors import NotFound, Unprocessable
from workers.models.routing.routing import Routing, with_options
from workers.models.routing.rules import SHIPPED_RULES, read_rules

RULES = """
[profile.fast]
models = ["small", "*mini*"]
prefer = "loaded"
size = "smallest"
aliases = ["quick"]
fallbacks = ["general"]

[profile.general]
models = ["large*"]
aliases = ["default", "quality", "fallback", "smart", "reasoning"]

[profile.lost]
models = ["nowhere"]
fallbacks = ["broken"]
capabilities = ["vision"]
"""


def model(name: str, **more: Any) -> ModelInfo:
    """A catalogue entry that will do for anything."""
    facts: dict[str, Any] = {
        "family": "llama",
        "format": "gguf",
        "quantisation": "",
        "parameters": 1,
        "size_bytes": 10,
        "context_tokens": 4096,
        "state": "available",
        "capabilities": ["generate", "chat"],
    }
    return ModelInfo(name=name, **{**facts, **more})


def routing(tmp_path: Path, *entries: ModelInfo, **settings: Any) -> Routing:
    """Routing over the rules above and the shipped ones."""
    path = tmp_path / "models.toml"
    path.write_text(RULES)
    models = ModelSettings(**{"default": "standard", **settings})
    return Routing(read_rules([path, SHIPPED_RULES], models), models, lambda: entries)


async def test_candidates_are_tried_in_order(tmp_path: Path) -> None:
    """The first name of the profile that is here is taken, and the reply says which profile and why."""
    routed = await routing(tmp_path, model("large-1"), model("small")).route(Route(profile="fast"))

    assert (routed.model, routed.profile, routed.passed_over) == ("small", "fast", [])
    assert routed.reason == "profile fast: candidate small"
    assert routed.options == {"temperature": 0.3, "max_tokens": 256}


async def test_of_one_pattern_the_preferred_size_goes_first(tmp_path: Path) -> None:
    """A fast profile takes the smallest that matches, a general one the largest."""
    entries = [
        model("a-mini", size_bytes=9),
        model("b-mini", size_bytes=3),
        model("large-1"),
        model("large-2", size_bytes=99),
    ]

    assert (await routing(tmp_path, *entries).route(Route(profile="fast"))).model == "b-mini"
    assert (await routing(tmp_path, *entries).route(Route())).model == "large-2"


async def test_loaded_model_goes_first_where_the_profile_says_so(tmp_path: Path) -> None:
    """A small wait is worth more to `fast` than its first choice; `general` keeps to its order."""
    entries = [
        model("small"),
        model("b-mini", state="loaded"),
        model("large-1", size_bytes=99),
        model("large-2", state="loaded"),
    ]

    fast = await routing(tmp_path, *entries).route(Route(profile="fast"))
    assert (fast.model, fast.is_loaded) == ("b-mini", True)
    assert [(one.model, one.reason) for one in fast.passed_over] == [("small", "b-mini is loaded already")]
    assert (await routing(tmp_path, *entries).route(Route(profile="general"))).model == "large-1"


async def test_what_will_not_do_is_passed_over_with_the_reason(tmp_path: Path) -> None:
    """Unusable, unable and too small are three different things."""
    entries = [
        model("small", state="unusable", error="its header is cut off"),
        model("x-mini", capabilities=["embed"]),
        model("y-mini", context_tokens=512, size_bytes=11),
        model("large-1"),
    ]

    routed = await routing(tmp_path, *entries).route(Route(profile="fast", prompt_tokens=1000))

    assert routed.model == "large-1"
    assert routed.reason == "profile fast: candidate large* of the fallback general"
    assert {one.model: one.reason for one in routed.passed_over} == {
        "small": "unusable: its header is cut off",
        "x-mini": "cannot generate",
        "y-mini": "too small: 1000 tokens of prompt and 256 of answer, its window has 512",
    }


async def test_window_is_the_one_the_model_is_loaded_with(tmp_path: Path) -> None:
    """A long-context model that settings load with a short window is too small for a long prompt."""
    entries = [model("small", context_tokens=100_000), model("large-1", context_tokens=100_000)]
    short = routing(tmp_path, *entries, max_context_tokens=1024)

    assert (
        await routing(tmp_path, *entries, max_context_tokens=65_536).route(Route(profile="fast", prompt_tokens=9_000))
    ).model == "small"
    with pytest.raises(Unprocessable, match="too small: 9000 tokens"):
        await short.route(Route(profile="fast", prompt_tokens=9_000))


async def test_shorter_answer_is_better_than_none(tmp_path: Path) -> None:
    """Where no window has room for a whole answer beside the prompt, one that holds the prompt is taken."""
    routed = await routing(tmp_path, model("small", context_tokens=512)).route(Route(profile="fast", prompt_tokens=400))

    assert (routed.model, routed.passed_over) == ("small", [])


async def test_default_model_is_the_last_resort(tmp_path: Path) -> None:
    """A profile of which nothing is here is served by models.default."""
    routed = await routing(tmp_path, model("standard")).route(Route(profile="code"))

    assert (routed.model, routed.reason) == ("standard", "profile code: the default model")


async def test_nothing_that_will_do_is_an_error_with_every_reason(tmp_path: Path) -> None:
    """The caller learns of each candidate why it was not taken."""
    with pytest.raises(Unprocessable) as caught:
        await routing(tmp_path, model("broken"), model("standard")).route(Route(profile="lost"))

    assert (
        "no model will do for the profile lost: broken: cannot vision; standard: cannot vision" in caught.value.message
    )


@pytest.mark.parametrize("name", ["quality", "fallback", "smart", "reasoning", "default"])
async def test_names_of_older_configurations_are_aliases(tmp_path: Path, name: str) -> None:
    """load_policy and model_pref of the agents before this service keep working."""
    assert routing(tmp_path, model("large-1")).resolve(name).model == "large-1"
    assert (await routing(tmp_path, model("large-1")).route(Route(profile=name))).profile == "general"


async def test_task_is_claimed_by_a_profile_or_general(tmp_path: Path) -> None:
    """Nobody has to know the profiles to say what a request is for."""
    here = routing(tmp_path, model("large-1"), model("my-coder"))

    assert (await here.route(Route(task="code-generation"))).model == "my-coder"
    unknown = await here.route(Route(task="knitting"))
    assert (unknown.profile, unknown.reason) == ("general", "task knitting, which no profile claims: candidate large*")


async def test_profile_that_is_none_is_refused_with_the_nearest(tmp_path: Path) -> None:
    """A typo is not routed to something else in silence."""
    with pytest.raises(NotFound, match="there is no profile 'fats'; did you mean fast"):
        await routing(tmp_path, model("large-1")).route(Route(profile="fats"))


def test_name_of_a_model_goes_before_a_profile(tmp_path: Path) -> None:
    """Who has a model called like a profile means the model; other names are left to the catalogue."""
    here = routing(tmp_path, model("fast", state="loaded"), model("large-1", aliases=["code"]))

    named = here.resolve("fast")
    assert (named.model, named.profile, named.is_loaded, named.options) == ("fast", "", True, {})
    assert here.resolve("code").profile == ""
    assert here.resolve("general").model == "large-1"
    assert (here.resolve("whatever").model, here.resolve(None).model) == ("whatever", "standard")


def test_profile_asks_for_what_the_request_needs(tmp_path: Path) -> None:
    """A model that cannot chat is passed over for a chat."""
    here = routing(tmp_path, model("small", capabilities=["generate"]), model("b-mini"))

    assert here.resolve("fast").model == "small"
    assert here.resolve("fast", 10, ["chat"]).model == "b-mini"


def test_options_of_a_profile_fill_in_what_a_request_leaves_open() -> None:
    """What the request says itself stays."""
    request = Chat(messages=[ChatMessage(role="user", content="hello")], temperature=0.9)

    filled = with_options(request, {"temperature": 0.1, "top_p": 0.5, "stop": ["END"]})

    assert (filled.temperature, filled.top_p, filled.stop) == (0.9, 0.5, ["END"])


async def test_profiles_are_listed_with_their_origin(tmp_path: Path) -> None:
    """A person sees which file had the last word."""
    listed = {one.name: one for one in (await routing(tmp_path).profiles(Profiles())).profiles}

    assert listed["fast"].models == ["small", "*mini*", "general"]
    assert listed["fast"].origin == str(tmp_path / "models.toml")
    assert listed["creative"].origin == str(SHIPPED_RULES)


async def test_limits_are_found_by_alias_too(tmp_path: Path) -> None:
    """An alias means its model, with what its file says."""
    limits = await routing(tmp_path, model("small", aliases=["s"])).limits(ModelLimits(model="s"))

    assert (limits.source, limits.context_tokens) == ("file", 4096)
