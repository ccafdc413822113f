"""Text from a model for clients of the replaced agents: whom they mean, what they ask for, and the reply all of them read.

A model that knows a chat template is asked as a chat, for its own template is what makes it answer; a prompt that is
rendered already, and a model without a template, gets the text as it stands. It knows no agent.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Final, NamedTuple

from schemas.bodies.model import Chat, ChatMessage, Generate, Generation, ModelInfo, ModelList, Models
from schemas.bodies.model_trials import Route
from schemas.errors import NotFound, Rejected
from workers.gateway.legacy.agent import Fields, Refused
from workers.gateway.legacy.agents.model_entries import LOOK_S, is_model_name
from workers.gateway.legacy.house import House
from workers.gateway.legacy.sockets import GONE

# Seconds for a load and an answer: what the old clients of generations waited at most.
GENERATE_S: Final = 120.0

# The preference of requests that name none, or one that is unknown.
FAST: Final = "fast"

# Of schemas.bodies.model.Sampling.
_TOKENS_MAX: Final = 1_000_000
_STOPS_MAX: Final = 64
_STOP_CHARACTERS: Final = 256

# Marks of prompts that a client rendered itself: ChatML and its kin, Llama 2, Gemma, Alpaca.
_RENDERED: Final = re.compile(r"<\|\w+\|>|\[/?INST\]|<start_of_turn>|^### ?\w+:", re.MULTILINE)


class Options(NamedTuple):
    """What the old requests could choose, brought into the ranges of ours."""

    max_tokens: int
    temperature: float
    top_p: float
    stop: list[str]
    conversation_id: str | None


def options_of(fields: Fields, *, max_tokens: int) -> Options:
    """Read the options, `max_tokens` being the default; unknown ones are passed over. Raises Refused."""
    stop = [fields["stop"]] if isinstance(fields.get("stop"), str) else fields.items_of("stop")
    return Options(
        max_tokens=fields.whole("max_tokens", max_tokens, low=1, high=_TOKENS_MAX),
        temperature=max(0.0, min(10.0, fields.number("temperature", 0.7))),
        top_p=max(1e-6, min(1.0, fields.number("top_p", 0.95))),
        stop=[str(one)[:_STOP_CHARACTERS] for one in stop if one][:_STOPS_MAX],
        conversation_id=fields.text("conversation_id") or None,
    )


async def generated(
    house: House, names: Sequence[str], prompt: str, options: Options, *, system: str = "", is_labelled: bool = False
) -> Generation:
    """The answer of the first of `names` that is a model or a profile here, of the default model where none is.

    A single name is asked for whatever it is. is_labelled: system prompt and prompt get labels where no template gives
    them. Raises BusError.
    """
    name, model = await _meant(house, names)
    shared: dict[str, Any] = {"model": name, **options._asdict()}
    if is_rendered(prompt) or (model is not None and "chat" not in model.capabilities):
        text = joined(system, prompt, is_labelled=is_labelled)
        reply = await _while_heard(house.ask("model.generate", Generate(prompt=text, **shared), timeout_s=GENERATE_S))
    else:
        messages = [ChatMessage(role="user", content=prompt)]
        if system:
            messages.insert(0, ChatMessage(role="system", content=system))
        reply = await _while_heard(house.ask("model.chat", Chat(messages=messages, **shared), timeout_s=GENERATE_S))
    assert isinstance(reply, Generation)
    return reply


def answer_of(generation: Generation, options: Options, *, status: str) -> dict[str, Any]:
    """The reply under every key that one of the clients reads.

    using_kv_cache: the state of the conversation's earlier turns was still there.
    """
    answer: dict[str, Any] = {
        "status": status,
        "success": True,
        "text": generation.text,
        "response_text": generation.text,
        "result": {"text": generation.text},
        "model_id": generation.model,
        "model_used": generation.model,
        "tokens_generated": generation.usage.completion_tokens,
        "timestamp": time.time(),
    }
    if options.conversation_id is not None:
        answer |= {
            "conversation_id": options.conversation_id,
            "using_kv_cache": generation.usage.cached_tokens > 0,
        }
    return answer


def is_rendered(prompt: str) -> bool:
    """True for a prompt that holds the marks of a chat template."""
    return _RENDERED.search(prompt) is not None


def joined(system: str, prompt: str, *, is_labelled: bool) -> str:
    """System prompt and prompt as one text, an empty line between."""
    if not system:
        return prompt
    return f"System: {system}\n\nUser: {prompt}\n\nAssistant:" if is_labelled else f"{system}\n\n{prompt}"


def no_speech(what: str) -> Refused:
    """The refusal of what would take a speech model; none of ours hears or speaks."""
    return Refused(f"{what} needs a speech model, and none is served: Olympus runs language models")


async def preferred(house: House, preferences: Sequence[str]) -> dict[str, str]:
    """The model that each preference means at this moment; those for which there is none are left out."""

    async def one(preference: str) -> str | None:
        try:
            return str((await house.ask("model.route", Route(profile=preference), timeout_s=LOOK_S)).model)
        except Rejected:
            return None

    models = await asyncio.gather(*(one(preference) for preference in preferences))
    return {preference: model for preference, model in zip(preferences, models, strict=True) if model is not None}


async def _while_heard(answer: Coroutine[Any, Any, Any]) -> Any:
    """The answer, unless the client leaves before: one that gave up asks again, and a model should not work for both.

    Raises Refused where it left, BusError.
    """
    gone = GONE.get()
    if gone is None:
        return await answer
    working, leaving = asyncio.ensure_future(answer), asyncio.ensure_future(gone.wait())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return await working
        raise Refused("the client left")
    finally:
        working.cancel()
        leaving.cancel()


async def _meant(house: House, names: Sequence[str]) -> tuple[str | None, ModelInfo | None]:
    """The first of the names that means something, with its model; the model is None where only its service knows it."""
    listed: Models = await house.ask("model.list", ModelList(), timeout_s=LOOK_S)
    known = {alias: model for model in listed.models for alias in (model.name, *model.aliases)}
    for name in filter(is_model_name, names):
        if name in known:
            return name, known[name]
        try:
            routed = await house.ask("model.route", Route(profile=name), timeout_s=LOOK_S)
        except NotFound:
            continue
        return name, known.get(routed.model)
    if len(names) == 1:
        return names[0], None
    return None, known.get(listed.default or "")
