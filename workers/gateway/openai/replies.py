"""Answers of the model service in OpenAI's shape, whole or piece by piece; pure, it knows no HTTP and no bus.

Source: OpenAI's API reference (chat completion, chat completion chunk, completion, embeddings, models). What we have to
say beside stands under `olympus`; the `openai` package keeps such fields in `model_extra`.
"""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, Protocol

import msgspec

from schemas.bodies.model import (
    Embeddings,
    Generation,
    GenerationPart,
    ModelInfo,
    Models,
    TokenChoice,
    TokenLogprob,
    ToolCall,
)
from schemas.bodies.model_trials import Profile
from schemas.errors import BadRequest
from workers.gateway.openai.requests import Wanted, WantedVectors

Body = dict[str, Any]

# Who owns a model there; ours are files of this machine.
_OWNER: Final = "olympus"

# The end of a stream.
DONE: Final = b"data: [DONE]\n\n"


def sse(body: Body) -> bytes:
    """One event of a stream."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


class Shape(Protocol):
    """How a kind of answer is written."""

    whole: str
    piece: str

    def choice(self, text: str, calls: Sequence[ToolCall]) -> Body:
        """The text of a whole answer and its calls of tools."""

    def begin(self) -> Body | None:
        """What comes before the first text of a stream, None for nothing."""

    def delta(self, text: str) -> Body:
        """The next text of a stream."""

    def calls(self, calls: Sequence[ToolCall]) -> Body | None:
        """Calls of tools in a stream, None for none."""

    def end(self) -> Body:
        """The end of a stream has no text."""

    def logprobs(self, tokens: Sequence[TokenChoice], offset: int) -> Body:
        """Tokens with their probabilities. offset: characters of the answer before them."""


class ChatShape:
    """chat.completion."""

    whole = "chat.completion"
    piece = "chat.completion.chunk"

    def choice(self, text: str, calls: Sequence[ToolCall]) -> Body:
        message: Body = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
        if calls:
            message["tool_calls"] = [_call(call) for call in calls]
        return {"message": message}

    def begin(self) -> Body | None:
        return {"delta": {"role": "assistant", "content": "", "refusal": None}}

    def delta(self, text: str) -> Body:
        return {"delta": {"content": text}}

    def calls(self, calls: Sequence[ToolCall]) -> Body | None:
        if not calls:
            return None
        return {"delta": {"tool_calls": [{"index": at, **_call(call)} for at, call in enumerate(calls)]}}

    def end(self) -> Body:
        return {"delta": {}}

    def logprobs(self, tokens: Sequence[TokenChoice], offset: int) -> Body:
        content = [{**_token(token), "top_logprobs": [_token(top) for top in token.top]} for token in tokens]
        return {"content": content, "refusal": None}


class CompletionShape:
    """text_completion. It has no calls of tools and no beginning."""

    whole = "text_completion"
    piece = "text_completion"

    def choice(self, text: str, calls: Sequence[ToolCall]) -> Body:
        return {"text": text}

    def begin(self) -> Body | None:
        return None

    def delta(self, text: str) -> Body:
        return {"text": text}

    def calls(self, calls: Sequence[ToolCall]) -> Body | None:
        return None

    def end(self) -> Body:
        return {"text": ""}

    def logprobs(self, tokens: Sequence[TokenChoice], offset: int) -> Body:
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{top.text: top.logprob for top in token.top} for token in tokens],
            "text_offset": offsets,
        }


_SHAPES: Final[dict[str, Shape]] = {"model.chat": ChatShape(), "model.generate": CompletionShape()}


def whole(wanted: Wanted, generations: Sequence[Generation], created: int) -> Body:
    """The answer with all its choices."""
    shape = _SHAPES[wanted.subject]
    choices = []
    for index, generation in enumerate(generations):
        logprobs = shape.logprobs(generation.logprobs, 0) if wanted.with_logprobs else None
        choices.append(
            {
                "index": index,
                **shape.choice(generation.text, _calls(wanted, generation)),
                "logprobs": logprobs,
                "finish_reason": generation.finish_reason,
            }
        )
    return {
        "id": generations[0].reply_id,
        "object": shape.whole,
        "created": created,
        "model": generations[0].model,
        "choices": choices,
        "usage": _usage(wanted, generations),
        "system_fingerprint": None,
        "olympus": _ours(generations),
    }


class Writer:
    """Writes one streamed answer. reply_ids: of its choices; the first is the id of the whole."""

    def __init__(self, wanted: Wanted, reply_ids: Sequence[str], created: int) -> None:
        self._wanted = wanted
        self._shape = _SHAPES[wanted.subject]
        self._generations: dict[int, Generation] = {}
        self._characters = [0] * len(reply_ids)
        self._head: Body = {
            "id": reply_ids[0],
            "object": self._shape.piece,
            "created": created,
            "model": wanted.model,
            "system_fingerprint": None,
        }
        if wanted.with_usage:
            self._head["usage"] = None

    def begin(self) -> bytes:
        """What comes before the first piece of the model's."""
        begin = self._shape.begin()
        if begin is None:
            return b""
        return b"".join(self._event(index, begin) for index in range(len(self._characters)))

    def part(self, index: int, part: GenerationPart) -> bytes:
        """The next text of a choice; nothing where it has neither text nor probabilities."""
        logprobs = None
        if self._wanted.with_logprobs and part.logprobs:
            offset = self._characters[index]
            self._characters[index] += sum(len(token.text) for token in part.logprobs)
            logprobs = self._shape.logprobs(part.logprobs, offset)
        if not part.text and logprobs is None:
            return b""
        return self._event(index, self._shape.delta(part.text), logprobs)

    def last(self, index: int, generation: Generation) -> bytes:
        """The end of a choice, with the tools it calls."""
        self._generations[index] = generation
        # Who asked for a profile or for nothing learns here which model it was.
        self._head["model"] = generation.model
        calls = self._shape.calls(_calls(self._wanted, generation))
        text = b"" if calls is None else self._event(index, calls)
        return text + self._event(index, self._shape.end(), finish_reason=generation.finish_reason)

    def end(self) -> bytes:
        """After the last choice: what it cost, where that is wanted, and the mark of the end."""
        generations = [self._generations[index] for index in sorted(self._generations)]
        if not self._wanted.with_usage:
            return DONE
        usage = {"usage": _usage(self._wanted, generations), "olympus": _ours(generations)}
        return sse({**self._head, "choices": [], **usage}) + DONE

    def _event(
        self, index: int, content: Body, logprobs: Body | None = None, finish_reason: str | None = None
    ) -> bytes:
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}
        return sse({**self._head, "choices": [choice]})


def _calls(wanted: Wanted, generation: Generation) -> Sequence[ToolCall]:
    return generation.tool_calls[:1] if wanted.is_single_call else generation.tool_calls


def _call(call: ToolCall) -> Body:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _token(token: TokenLogprob) -> Body:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.text.encode("utf-8", "replace"))}


def _usage(wanted: Wanted, generations: Sequence[Generation]) -> Body:
    """Of all choices; a prompt counts once, however many choices it has."""
    prompts = generations[:: wanted.choices_each]
    prompt = sum(one.usage.prompt_tokens for one in prompts)
    completion = sum(one.usage.completion_tokens for one in generations)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(one.usage.cached_tokens for one in prompts)},
    }


def _ours(generations: Sequence[Generation]) -> Body:
    """What OpenAI's shape has no place for."""
    first = generations[0]
    return {
        "reply_ids": [one.reply_id for one in generations],
        "adapter": first.adapter,
        "route": first.route,
        "truncated_tokens": first.truncated_tokens,
        "timings": first.timings,
    }


# Vectors and models -------------------------------------------------------------------------------------------------


def vectors(wanted: WantedVectors, reply: Embeddings) -> Body:
    """Embeddings. Raises BadRequest where another number of dimensions was asked for than the model makes."""
    if wanted.dimensions not in (None, reply.dimension):
        raise BadRequest(
            f"{reply.model} makes vectors of {reply.dimension} dimensions, not of {wanted.dimensions}",
            field="dimensions",
        )
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": at, "embedding": _base64(vector) if wanted.is_base64 else _floats(vector)}
            for at, vector in enumerate(reply.vectors)
        ],
        "model": reply.model,
        "usage": {"prompt_tokens": reply.usage.prompt_tokens, "total_tokens": reply.usage.prompt_tokens},
    }


def _base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode()


def _floats(vector: bytes) -> list[float]:
    values = array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()


def listed(models: Models, profiles: Iterable[Profile]) -> Body:
    """What `model` may be: usable models, their other names, and routing profiles."""
    entries = []
    for info in models.models:
        if info.state != "unusable":
            entries += [entry_of(info, name) for name in (info.name, *info.aliases)]
    taken = {entry["id"] for entry in entries}
    entries += [profile_entry(profile) for profile in profiles if profile.name not in taken]
    return {"object": "list", "data": entries}


def entry_of(info: ModelInfo, name: str) -> Body:
    """A model by one of its names."""
    return {
        "id": name,
        "object": "model",
        "created": int(min((version.added_at for version in info.versions), default=0)),
        "owned_by": _OWNER,
        "olympus": {
            "kind": "model" if name == info.name else "alias",
            "model": info.name,
            "state": info.state,
            "context_tokens": info.context_tokens,
            "capabilities": info.capabilities,
        },
    }


def profile_entry(profile: Profile) -> Body:
    """A routing profile, which is asked for as a model is."""
    kind: Literal["profile"] = "profile"
    return {
        "id": profile.name,
        "object": "model",
        "created": 0,
        "owned_by": _OWNER,
        "olympus": {"kind": kind, "models": profile.models, "capabilities": profile.capabilities},
    }
