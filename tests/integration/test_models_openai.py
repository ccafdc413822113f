"""The OpenAI backend against a local server: what it sends, how it streams, and every way an endpoint can fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from bus.settings import Settings
from schemas.bodies.model import ChatMessage, Tool, ToolCall
from schemas.errors import (
    BusError,
    DeadlineExceeded,
    Internal,
    NotFound,
    NoWorker,
    Overloaded,
    QuotaExceeded,
    TooLarge,
    Unauthenticated,
    Unprocessable,
    Unsupported,
    WorkerLost,
)
from tests.openai_server import OpenAIServer, chat_piece, last_piece, sse, usage_piece
from workers.models.backends import openai, openai_wire
from workers.models.backends.backend import AdapterFile, Backend, Chunk, Options, Outcome, Question, Remote
from workers.models.control import LoadModel

pytest.importorskip("httpx", reason="the extra 'models' is not installed")

KEY = "sk-very-secret-4711"
OPTIONS = Options(
    max_tokens=20, temperature=0.5, top_k=30, top_p=0.9, min_p=0.1, repeat_penalty=1.2, seed=7, stop=("END",)
)
CHAT = Question(options=OPTIONS, messages=(ChatMessage(role="user", content="hi"),))
TEXT = Question(options=OPTIONS, text="Once")


def command_of(server: OpenAIServer, settings: Settings, **remote: Any) -> LoadModel:
    """What the service would tell a runner about the server's model."""
    changes: dict[str, Any] = {"base_url": server.base_url, "model": "small", "timeout_s": 5.0, **remote}
    return LoadModel(
        name="far", path="", settings=settings, format="remote", backend="openai", remote=Remote(**changes)
    )


@asynccontextmanager
async def loaded(server: OpenAIServer, settings: Settings, **remote: Any) -> AsyncIterator[Backend]:
    """The server and a backend that is connected to it."""
    async with server.running():
        backend = await openai.load(command_of(server, settings, **remote))
        try:
            yield backend
        finally:
            await backend.close()


async def ask(backend: Backend, question: Question) -> tuple[list[Chunk], Outcome]:
    """All of an answer."""
    chunks, outcome = [], None
    async with contextlib.aclosing(backend.answer(question)) as parts:
        async for part in parts:
            if isinstance(part, Chunk):
                chunks.append(part)
            else:
                outcome = part
    assert outcome is not None
    return chunks, outcome


def changed(question: Question, **changes: Any) -> Question:
    """`question` with other options."""
    return msgspec.structs.replace(question, options=msgspec.structs.replace(question.options, **changes))


async def test_chat_streams_its_pieces_and_ends_with_the_counted_tokens(settings: Settings) -> None:
    """Text comes as it is sent; the outcome holds it whole, with what the endpoint counted."""
    stream = [sse(chat_piece("Hel")), sse(chat_piece("lo")), sse(last_piece("length"), usage_piece(7, 2, 3))]
    async with loaded(OpenAIServer(stream=stream), settings) as backend:
        chunks, outcome = await ask(backend, CHAT)

    assert [chunk.text for chunk in chunks] == ["Hel", "lo"]
    assert (outcome.text, outcome.finish_reason) == ("Hello", "length")
    assert (outcome.prompt_tokens, outcome.completion_tokens, outcome.cached_tokens) == (7, 2, 3)
    assert outcome.first_token_s >= 0 and outcome.generate_s >= 0


async def test_plain_endpoint_is_sent_the_fields_of_the_api_and_no_others(settings: Settings) -> None:
    """An unknown field is an error at some endpoints, so only OpenAI's own go to one that was not recognised."""
    server = OpenAIServer()
    async with loaded(server, settings) as backend:
        await ask(backend, CHAT)

    body = server.body_of("/v1/chat/completions")
    assert body == {
        "model": "small",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 20,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "stop": ["END"],
    }


@pytest.mark.parametrize(
    ("owner", "sent"),
    [
        ("llamacpp", {"top_k": 30, "min_p": 0.1, "repeat_penalty": 1.2}),
        ("vllm", {"top_k": 30, "min_p": 0.1, "repetition_penalty": 1.2, "return_token_ids": True}),
        ("library", {}),
    ],
)
async def test_recognised_program_is_sent_what_it_takes(settings: Settings, owner: str, sent: dict[str, Any]) -> None:
    """llama-server and vLLM take more sampling options, under their own names; Ollama would ignore them."""
    server = OpenAIServer(models=[{"id": "small", "owned_by": owner}])
    async with loaded(server, settings) as backend:
        await ask(backend, TEXT)

    body = server.body_of("/v1/completions")
    standard = {"model", "stream", "stream_options", "prompt", "max_tokens", "temperature", "top_p", "seed", "stop"}
    assert {name: value for name, value in body.items() if name not in standard} == sent


@pytest.mark.parametrize(
    ("entry", "routes", "tokens"),
    [
        ({"owned_by": "vllm", "max_model_len": 1024}, {}, 1024),
        ({"owned_by": "llamacpp", "meta": {"n_ctx_train": 4096}}, {}, 4096),
        (
            {"owned_by": "llamacpp", "meta": {"n_ctx_train": 4096}},
            {"/props": {"default_generation_settings": {"n_ctx": 2048}}},
            2048,
        ),
        ({"owned_by": "library"}, {"/api/show": {"model_info": {"qwen3.context_length": 32768}}}, 32768),
        ({"owned_by": "library"}, {"/api/show": {"parameters": "stop x\nnum_ctx    5000", "model_info": {}}}, 5000),
        ({"owned_by": "library"}, {"/api/show": b"not JSON"}, None),
        ({}, {}, None),
    ],
)
async def test_window_is_what_the_program_says(
    settings: Settings, entry: dict[str, Any], routes: dict[str, Any], tokens: int | None
) -> None:
    """Each program tells its window in its own place; one that tells none has the setting's."""
    server = OpenAIServer(models=[{"id": "small", **entry}], routes=routes)
    async with loaded(server, settings) as backend:
        assert backend.context_tokens == (tokens or settings.models.max_context_tokens)


async def test_window_of_the_rules_is_an_upper_bound(settings: Settings) -> None:
    """A rule may make the window smaller than the endpoint's, not larger."""
    server = OpenAIServer(models=[{"id": "small", "owned_by": "vllm", "max_model_len": 1024}])
    async with server.running():
        for asked, expected in ((512, 512), (4096, 1024)):
            command = msgspec.structs.replace(command_of(server, settings), context_tokens=asked)
            backend = await openai.load(command)
            await backend.close()
            assert backend.context_tokens == expected


async def test_tool_calls_are_put_together_from_their_pieces(settings: Settings) -> None:
    """Name, id and arguments come in pieces, for several calls at once."""

    def piece(*calls: dict[str, Any]) -> dict[str, Any]:
        return {"choices": [{"index": 0, "delta": {"tool_calls": list(calls)}}]}

    stream = [
        sse(
            piece({"index": 0, "id": "a", "type": "function", "function": {"name": "look", "arguments": ""}}),
            piece({"index": 0, "function": {"arguments": '{"at":'}}),
            piece({"index": 1, "id": "b", "function": {"name": "wait", "arguments": "{}"}}),
            piece({"index": 0, "function": {"arguments": "1}"}}),
            last_piece("tool_calls"),
        )
    ]
    question = msgspec.structs.replace(
        CHAT,
        tools=(Tool(name="look", description="see", parameters={"type": "object"}),),
        tool_choice="required",
        messages=(
            ChatMessage(role="user", content="hi"),
            ChatMessage(role="assistant", tool_calls=[ToolCall(id="z", name="look", arguments="{}")]),
            ChatMessage(role="tool", content="dark", tool_call_id="z"),
        ),
    )
    server = OpenAIServer(stream=stream)
    async with loaded(server, settings) as backend:
        chunks, outcome = await ask(backend, question)

    assert chunks == []
    assert outcome.finish_reason == "tool_calls"
    assert outcome.tool_calls == (
        ToolCall(id="a", name="look", arguments='{"at":1}'),
        ToolCall(id="b", name="wait", arguments="{}"),
    )
    body = server.body_of("/v1/chat/completions")
    assert body["tool_choice"] == "required"
    assert body["tools"][0]["function"]["parameters"] == {"type": "object"}
    assert body["messages"][1]["tool_calls"][0]["function"] == {"name": "look", "arguments": "{}"}
    assert body["messages"][2]["tool_call_id"] == "z"


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ({"id": "a", "function": {"name": "n" * 129, "arguments": "{}"}}, r"length <= 128 - at `\$\.name`"),
        ({"id": "i" * 257, "function": {"name": "look", "arguments": "{}"}}, r"length <= 256 - at `\$\.id`"),
        ({"id": "a", "function": {"arguments": "{}"}}, r"length >= 1 - at `\$\.name`"),
    ],
    ids=["long name", "long id", "no name"],
)
async def test_a_tool_call_that_is_none_is_told(settings: Settings, call: dict[str, Any], told: str) -> None:
    """The caller could not send it back in the next turn."""
    stream = [
        sse({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, **call}]}}]}, last_piece("tool_calls"))
    ]
    async with loaded(OpenAIServer(stream=stream), settings) as backend:
        with pytest.raises(Internal, match=told):
            await ask(backend, CHAT)


async def test_json_schema_goes_as_a_response_format(settings: Settings) -> None:
    """A schema for a chat is OpenAI's own; for a prompt, and for a grammar, only some programs take it."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    server = OpenAIServer()
    async with loaded(server, settings) as backend:
        await ask(backend, changed(CHAT, json_schema=schema))
        assert server.body_of("/v1/chat/completions")["response_format"]["json_schema"]["schema"] == schema
        await ask(backend, msgspec.structs.replace(CHAT, is_json=True))
        assert server.body_of("/v1/chat/completions")["response_format"] == {"type": "json_object"}
        with pytest.raises(Unsupported, match="JSON Schema"):
            await ask(backend, changed(TEXT, json_schema=schema))
        with pytest.raises(Unsupported, match="grammar"):
            await ask(backend, changed(CHAT, grammar='root ::= "a"'))

    server = OpenAIServer(models=[{"id": "anything", "owned_by": "llamacpp"}])
    async with loaded(server, settings) as backend:
        assert "grammar" in backend.capabilities
        await ask(backend, changed(TEXT, grammar='root ::= "a"'))
        assert server.body_of("/v1/completions")["grammar"] == 'root ::= "a"'


async def test_logprobs_of_both_forms_are_read(settings: Settings) -> None:
    """The chat's form with llama-server's ids, and the older form of /completions."""
    chat = chat_piece("A")
    top = [{"token": "A", "logprob": -0.5, "id": 5}, {"token": "B", "logprob": -1.5, "id": 6}]
    chat["choices"][0]["logprobs"] = {"content": [{"token": "A", "logprob": -0.5, "id": 5, "top_logprobs": top}]}
    server = OpenAIServer(stream=[sse(chat, last_piece())])
    async with loaded(server, settings) as backend:
        chunks, outcome = await ask(backend, changed(CHAT, logprobs=2))
        body = server.body_of("/v1/chat/completions")
        assert (body["logprobs"], body["top_logprobs"]) == (True, 2)
        assert chunks[0].logprobs == list(outcome.logprobs)
        choice = outcome.logprobs[0]
        assert (choice.token_id, choice.logprob, [each.token_id for each in choice.top]) == (5, -0.5, [5, 6])
        assert outcome.mean_logprob == -0.5

        older = {"tokens": ["A", "B"], "token_logprobs": [-1.0, -2.0], "top_logprobs": [{"B": -3.0, "A": -1.0}, None]}
        server.stream = [sse({"choices": [{"text": "AB", "logprobs": older, "finish_reason": "stop"}]})]
        _, outcome = await ask(backend, changed(TEXT, logprobs=2))
        assert [(each.token_id, each.text, each.logprob) for each in outcome.logprobs] == [
            (-1, "A", -1.0),
            (-1, "B", -2.0),
        ]
        assert [each.text for each in outcome.logprobs[0].top] == ["A", "B"]


@pytest.mark.parametrize(("stop_reason", "token_ids"), [(None, [5]), (0, [5]), ("END", [5, 0])])
async def test_token_that_ends_an_answer_is_not_part_of_it(
    settings: Settings, stop_reason: object, token_ids: list[int]
) -> None:
    """vLLM reports it with its id; the tokens of a stop string are its own."""
    entries = [{"token": text, "logprob": -0.5} for text in ("A", "")]
    choice = {"text": "A", "token_ids": [5, 0], "logprobs": {"content": entries}, "finish_reason": "stop"}
    server = OpenAIServer(stream=[sse({"choices": [{**choice, "stop_reason": stop_reason}]})])
    server.models = [{"id": "small", "owned_by": "vllm", "max_model_len": 512}]
    async with loaded(server, settings) as backend:
        chunks, outcome = await ask(backend, TEXT)
    assert outcome.token_ids == chunks[0].token_ids == token_ids
    assert [choice.token_id for choice in outcome.logprobs] == token_ids


async def test_vectors_come_at_length_one_in_the_order_of_the_texts(settings: Settings) -> None:
    """The endpoint may send them in any order and of any length."""
    answer = {
        "data": [{"index": 1, "embedding": [0, 2]}, {"index": 0, "embedding": [3, 4]}],
        "usage": {"prompt_tokens": 9},
    }
    async with loaded(OpenAIServer(routes={"/v1/embeddings": answer}), settings) as backend:
        vectors, tokens = await backend.embed(["a", "b"], "refuse")

    assert [struct.unpack("<2f", vector) for vector in vectors] == [pytest.approx((0.6, 0.8)), (0.0, 1.0)]
    assert tokens == 9


@pytest.mark.parametrize(
    "data",
    [
        [],
        [{"index": 0, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [0.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": ["x"]}],
        [{"index": 0, "embedding": [1.7e308, 1.7e308]}, {"index": 1, "embedding": [1.0, 2.0]}],
    ],
)
async def test_vectors_that_do_not_fit_the_texts_are_refused(settings: Settings, data: list[Any]) -> None:
    """Missing, doubled, of different dimensions, without a direction, or no numbers."""
    async with loaded(OpenAIServer(routes={"/v1/embeddings": {"data": data}}), settings) as backend:
        with pytest.raises(Internal):
            await backend.embed(["a", "b"], "refuse")


async def test_what_the_api_lacks_is_unsupported(settings: Settings) -> None:
    """Adapters and scores; nothing is ever kept for a conversation."""
    async with loaded(OpenAIServer(), settings) as backend:
        with pytest.raises(Unsupported, match="adapters"):
            await backend.set_adapters([AdapterFile(name="a", path="/a", sha256="0" * 64)])
        await backend.set_adapters([])
        with pytest.raises(Unsupported, match="adapters"):
            await ask(backend, changed(CHAT, adapter="0" * 64))
        with pytest.raises(Unsupported, match="log-probabilities"):
            await backend.score([""], ["a"], None)
        assert not backend.forget("c")


# Keys ---------------------------------------------------------------------------------------------------------------


async def test_key_is_sent_and_shown_nowhere(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in an error that the endpoint writes it into, not in a log at debug, not in a repr."""
    monkeypatch.setenv("FAR_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    refusal = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}).encode()
    server = OpenAIServer()
    async with loaded(server, settings, key_env="FAR_KEY") as backend:
        await ask(backend, CHAT)
        server.status, server.error = 401, refusal
        with pytest.raises(Unauthenticated) as refused:
            await ask(backend, CHAT)
        server.status, server.stream = 200, [sse({"error": {"message": f"bad {KEY}"}})]
        with pytest.raises(Internal) as broken:
            await ask(backend, CHAT)
        server.stream = [f"data: no event {KEY}\n\n".encode()]
        with pytest.raises(Internal) as malformed:
            await ask(backend, CHAT)
        # Cut off in the middle of the key, half of it would be left.
        server.status, server.error = 401, b"." * (openai_wire.MAX_EXCERPT - 5) + KEY.encode()
        with pytest.raises(Unauthenticated) as cut:
            await ask(backend, CHAT)
        shown = [repr(error.value) for error in (malformed, cut)]
        shown += [repr(backend), repr(vars(backend)), repr(vars(backend)["endpoint"])]

    assert [headers["authorization"] for _, _, headers, _ in server.requests] == [f"Bearer {KEY}"] * 6
    assert "FAR_KEY" in refused.value.message and "[key]" in refused.value.message
    assert KEY not in "".join(
        [repr(refused.value), str(refused.value.details), repr(broken.value), *shown, caplog.text]
    )
    assert f".{KEY[:5]}" not in cut.value.message


@pytest.mark.parametrize(("value", "words"), [(None, "no FAR_KEY"), ("  ", "no FAR_KEY"), ("a\nb", "characters")])
async def test_missing_or_impossible_key_names_its_variable(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, value: str | None, words: str
) -> None:
    """The error says which variable, and nothing of what is in it."""
    monkeypatch.delenv("FAR_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("FAR_KEY", value)
    with pytest.raises(Unprocessable, match=words) as refused:
        await openai.load(command_of(OpenAIServer(port=9), settings, key_env="FAR_KEY"))
    assert "a\nb" not in refused.value.message


@pytest.mark.parametrize(
    "url", ["http://user:pw-4711@127.0.0.1/v1", "http://127.0.0.1/v1?key=pw-4711", "ftp://127.0.0.1/pw-4711", "pw-4711"]
)
async def test_url_with_a_secret_or_of_another_kind_is_refused_without_showing_it(settings: Settings, url: str) -> None:
    """A key belongs into the environment; the error does not repeat the URL."""
    with pytest.raises(Unprocessable, match="base_url") as refused:
        await openai.load(command_of(OpenAIServer(), settings, base_url=url))
    assert "pw-4711" not in refused.value.message


@pytest.mark.parametrize(
    "host", ["127.0.0.1:99999999", "127.0.0.1:abc", "127.0.0.1:0", "[::1", "a\x00b", "a\u2028b", "\u2488.example"]
)
async def test_url_that_is_none_is_refused(settings: Settings, host: str) -> None:
    """Ports that are none, addresses without an end, characters that no host has."""
    with pytest.raises(Unprocessable) as refused:
        await openai.load(command_of(OpenAIServer(), settings, base_url=f"http://{host}/v1"))
    assert refused.value.details["field"] == "base_url"


# Failures -----------------------------------------------------------------------------------------------------------


async def test_closed_port_names_the_host(settings: Settings) -> None:
    """Nobody there: retryable, with scheme, host and port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(NoWorker, match=url.removesuffix("/v1")):
            await openai.load(command_of(OpenAIServer(), settings, base_url=url))


@pytest.mark.parametrize(
    ("status", "headers", "kind", "wait_s"),
    [
        (400, {}, Unprocessable, None),
        (401, {}, Unauthenticated, None),
        (404, {}, NotFound, None),
        (429, {"Retry-After": "12"}, QuotaExceeded, 12.0),
        (500, {}, Internal, None),
        (503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, Overloaded, 0.0),
        (503, {"Retry-After": "soon"}, Overloaded, None),
        (302, {"Location": "http://127.0.0.1:1/v1"}, Internal, None),
    ],
)
async def test_http_status_becomes_our_error(
    settings: Settings, status: int, headers: dict[str, str], kind: type[BusError], wait_s: float | None
) -> None:
    """With the endpoint's own words and, where it says so, how long to wait."""
    server = OpenAIServer(status=status, headers=headers, error=b'{"error": {"message": "not this time"}}')
    async with loaded(server, settings) as backend:
        with pytest.raises(kind, match="not this time") as refused:
            await ask(backend, CHAT)

    assert type(refused.value) is kind
    assert refused.value.details["status"] == status
    assert refused.value.details.get("retry_after_s") == wait_s


@pytest.mark.parametrize("is_cut", [True, False])
async def test_answer_that_ends_early_counts_what_came(settings: Settings, is_cut: bool) -> None:
    """Broken connection or an end without a finish_reason: the caller learns how much it has."""
    server = OpenAIServer(stream=[sse(chat_piece("Hello"), chat_piece(" you"))], is_cut=is_cut)
    async with loaded(server, settings) as backend:
        with pytest.raises(WorkerLost, match=r"early|broke") as lost:
            await ask(backend, CHAT)

    assert lost.value.details == {"received_characters": 9, "received_pieces": 2}


async def test_error_within_the_stream_is_an_error(settings: Settings) -> None:
    """Endpoints that fail in the middle write it into the stream."""
    server = OpenAIServer(stream=[sse(chat_piece("Hello"), {"error": {"message": "out of memory", "code": 500}})])
    async with loaded(server, settings) as backend:
        with pytest.raises(Internal, match="out of memory") as broken:
            await ask(backend, CHAT)
    assert broken.value.details["received_pieces"] == 1


async def test_lines_that_are_no_events_are_passed_over(settings: Settings) -> None:
    """Comments, other fields, blank and foreign lines, carriage returns, pieces cut anywhere."""
    whole = b": ping\r\nevent: x\r\nid: 1\r\nfoo\r\n\r\n" + sse(chat_piece("Hé"), last_piece()).replace(b"\n", b"\r\n")
    server = OpenAIServer(stream=[whole[at : at + 5] for at in range(0, len(whole), 5)])
    async with loaded(server, settings) as backend:
        _, outcome = await ask(backend, CHAT)
    assert outcome.text == "Hé"


@pytest.mark.parametrize(
    ("piece", "words"),
    [
        (b"data: {not json}\n\n", "an event that is none.*not json"),
        (b'data: {"choices": 7}\n\n', "an event that is none"),
        (b"data: \xff\xfe\n\n", "an event that is none"),
        (b'data: {"error": ' + b"[" * 100_000 + b"\n\n", "an event that is none"),
        (b"data: " + b"x" * (1024 * 1024 + 1), "line of over"),
    ],
)
async def test_malformed_event_is_refused_with_an_excerpt(settings: Settings, piece: bytes, words: str) -> None:
    """No JSON, another shape, no UTF-8, and a line without an end."""
    async with loaded(OpenAIServer(stream=[piece]), settings) as backend:
        with pytest.raises(Internal, match=words) as refused:
            await ask(backend, CHAT)
    assert len(refused.value.message) < 1_000


async def test_answer_without_an_end_is_cut_off(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that keeps to no max_tokens does not fill the memory."""
    monkeypatch.setattr(openai, "MAX_ANSWER_BYTES", 4_096)
    many = [sse({"choices": [{"delta": {"content": "and on "}}]})] * 200
    async with loaded(OpenAIServer(stream=many), settings) as backend:
        with pytest.raises(TooLarge, match="over 4096 bytes") as refused:
            await ask(backend, CHAT)
    assert refused.value.details["received_pieces"] > 0


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"error": ' + b"[" * 100_000, b"\xff"])
async def test_error_in_any_form_is_an_error(settings: Settings, body: bytes) -> None:
    """Nested deeper than anybody reads, or no text at all; and a wait that is no number."""
    server = OpenAIServer()
    async with loaded(server, settings) as backend:
        server.status, server.error, server.headers = 503, body, {"retry-after": "\u00b2"}
        with pytest.raises(Overloaded) as refused:
            await ask(backend, CHAT)
    assert len(refused.value.message) < 1_000
    assert "retry_after_s" not in refused.value.details


async def test_answer_that_is_no_stream_is_refused(settings: Settings) -> None:
    """Some proxies answer 200 with a page."""
    async with loaded(OpenAIServer(content_type="text/html", stream=[b"<html>"]), settings) as backend:
        with pytest.raises(Internal, match="text/html"):
            await ask(backend, CHAT)


async def test_silent_endpoint_ends_with_the_timeout(settings: Settings) -> None:
    """No byte for `timeout_s`: the request ends, and says how much had come."""
    server = OpenAIServer(stream=[sse(chat_piece("Hello"))], is_silent=True)
    async with loaded(server, settings, timeout_s=0.2) as backend:
        with pytest.raises(DeadlineExceeded, match=r"silent for 0\.2 s") as late:
            await ask(backend, CHAT)
    assert late.value.details["received_characters"] == 5


async def test_closing_an_answer_closes_its_connection(settings: Settings) -> None:
    """The endpoint stops computing when its client hangs up, so that is what a cancelled answer does."""
    server = OpenAIServer(stream=[sse(chat_piece("Hello"))], is_silent=True)
    async with loaded(server, settings) as backend:
        parts = backend.answer(CHAT)
        first = await anext(parts)
        assert isinstance(first, Chunk) and first.text == "Hello"
        await parts.aclose()
        async with asyncio.timeout(5):
            await server.left.wait()


async def test_unknown_model_is_refused_with_the_known_ones(settings: Settings) -> None:
    """A program that lists what it has is believed; other endpoints may take more than they list."""
    server = OpenAIServer(models=[{"id": "other:latest", "owned_by": "library"}])
    async with server.running():
        with pytest.raises(NotFound, match="other:latest"):
            await openai.load(command_of(server, settings))
        await (await openai.load(command_of(server, settings, model="other"))).close()
    async with loaded(OpenAIServer(models=[{"id": "another", "owned_by": "somebody"}]), settings):
        pass


async def test_endpoint_without_a_list_of_models_is_used(settings: Settings) -> None:
    """Not every endpoint has /models."""
    async with loaded(OpenAIServer(models=None), settings) as backend:
        assert (await ask(backend, CHAT))[1].text == "Hello you"
