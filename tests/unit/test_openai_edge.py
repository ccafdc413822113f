"""OpenAI's shapes as requests to the model service and back, without HTTP or a bus."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.bodies.model import (
    Chat,
    ChatMessage,
    Embeddings,
    Generate,
    Generation,
    GenerationPart,
    ModelInfo,
    Models,
    ModelVersion,
    Timings,
    TokenChoice,
    TokenLogprob,
    Tool,
    ToolCall,
    Usage,
)
from schemas.bodies.model_trials import Profile
from schemas.errors import (
    BY_CODE,
    BadRequest,
    BusError,
    NotFound,
    QuotaExceeded,
    Unprocessable,
    Unsupported,
    WorkerLost,
)
from workers.gateway.openai import replies, requests
from workers.gateway.openai.errors import error_body, error_response

chat_types = pytest.importorskip("openai.types.chat", reason="the openai package is not installed")
types = pytest.importorskip("openai.types", reason="the openai package is not installed")

HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}, "strict": True}}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "The time."}}
CALL = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}


def chat(**fields: Any) -> requests.Wanted:
    return requests.chat_of({"model": "small", "messages": HELLO, **fields})


def body_of(**fields: Any) -> Chat:
    body = chat(**fields).bodies[0]
    assert isinstance(body, Chat)
    return body


def generation(text: str = "Hi.", **changes: Any) -> Generation:
    fields: dict[str, Any] = {
        "model": "small-q4",
        "text": text,
        "token_ids": [1, 2],
        "finish_reason": "stop",
        "usage": Usage(prompt_tokens=7, completion_tokens=2, cached_tokens=3),
        "timings": Timings(prompt_s=0.1, generate_s=0.2, first_token_s=0.1, tokens_per_s=10.0),
        "reply_id": "ab" * 16,
    }
    return Generation(**{**fields, **changes})


def events_of(stream: bytes) -> list[dict[str, Any]]:
    """The bodies of a stream that is whole."""
    lines = stream.decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


# Requests


def test_a_chat_becomes_a_chat_of_the_model_service() -> None:
    """Every field that has a counterpart arrives under its name there."""
    body = body_of(
        messages=[
            {"role": "developer", "content": "Be short."},
            {"role": "user", "content": [{"type": "text", "text": "What time"}, {"type": "text", "text": " is it?"}]},
            {"role": "assistant", "content": None, "refusal": None, "parsed": 1, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "noon"},
        ],
        tools=[WEATHER, CLOCK],
        temperature=0,
        top_p=0.5,
        max_completion_tokens=9,
        stop="\n",
        seed=-1,
        frequency_penalty=0.1,
        presence_penalty=0.2,
        logprobs=True,
        top_logprobs=2,
        top_k=5,
        min_p=0.1,
        adapter="",
        truncate="start",
        metadata={"conversation_id": "c"},
    )
    assert body == Chat(
        model="small",
        messages=[
            ChatMessage(role="system", content="Be short."),
            ChatMessage(role="user", content="What time is it?"),
            ChatMessage(role="assistant", tool_calls=[ToolCall(id="c1", name="clock", arguments="{}")]),
            ChatMessage(role="tool", tool_call_id="c1", content="noon"),
        ],
        tools=[Tool(name="weather", parameters={"type": "object"}), Tool(name="clock", description="The time.")],
        temperature=0.0,
        top_p=0.5,
        max_tokens=9,
        stop=["\n"],
        seed=2**32 - 1,
        frequency_penalty=0.1,
        presence_penalty=0.2,
        logprobs=2,
        top_k=5,
        min_p=0.1,
        adapter="",
        truncate="start",
        conversation_id="c",
    )


@pytest.mark.parametrize(
    ("choice", "names", "mode"),
    [
        ("auto", ["weather", "clock"], "auto"),
        ("none", ["weather", "clock"], "none"),
        ("required", ["weather", "clock"], "required"),
        ({"type": "function", "function": {"name": "clock"}}, ["clock"], "required"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [CLOCK]}}, ["clock"], "auto"),
    ],
)
def test_a_choice_of_tools_is_made_by_what_is_offered(choice: Any, names: list[str], mode: str) -> None:
    """The model service knows no names in tool_choice, so only the tools that may be called are offered."""
    body = body_of(tools=[WEATHER, CLOCK], tool_choice=choice)
    assert ([tool.name for tool in body.tools], body.tool_choice) == (names, mode)


def test_the_three_formats_of_an_answer() -> None:
    """text asks for nothing, json_object for any object, json_schema for that shape."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    of_schema = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    assert body_of(response_format={"type": "text"}).response_format == "text"
    assert body_of(response_format={"type": "json_object"}).response_format == "json"
    assert body_of(response_format=of_schema).json_schema == schema
    prompt = requests.completion_of({"prompt": "a", "response_format": {"type": "json_object"}}).bodies[0]
    assert prompt.json_schema == {"type": "object"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": "a", "mood": 1}]}, "messages[0].mood"),
        ({"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "messages[0].audio"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"type": "custom"}]}]},
            "messages[0].tool_calls[0].type",
        ),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": 65}, "n"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"functions": [{"name": "a"}]}, "functions"),
        ({"store": True}, "store"),
        ({"web_search_options": {"a": 1}}, "web_search_options"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"response_format": {"type": "poem"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "always"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "clock"}}}, "tool_choice"),
        ({"tool_choice": {"type": "custom"}}, "tool_choice.type"),
        ({"temprature": 1}, "temprature"),
    ],
)
def test_what_is_wrong_or_not_supported_is_named(fields: dict[str, Any], param: str) -> None:
    """`param` leads to the field from the body's root on."""
    with pytest.raises(BadRequest) as caught:
        chat(**fields)
    assert caught.value.details["field"] == param
    assert error_body(caught.value)["error"]["param"] == param


def test_an_unknown_field_is_told_in_openais_words() -> None:
    """Programs look for this message to leave a field out."""
    with pytest.raises(BadRequest, match=r"^Unrecognized request argument supplied: temprature$"):
        chat(temprature=1)


def test_fields_that_ask_for_nothing_change_nothing() -> None:
    """Hints are dropped; null, false and empty values of what is not supported are no request for it."""
    hints = dict.fromkeys(requests.IGNORED, "x")
    nothing: dict[str, Any] = {
        **dict.fromkeys(requests.REFUSED, None),
        "store": False,
        "logit_bias": {},
        "functions": [],
    }
    assert chat(**hints, **nothing, stop=None, n=1, service_tier="auto", modalities=["text"]) == chat()


def test_choices_of_one_prompt_differ_in_their_seed() -> None:
    """With one seed all of them would be the same answer."""
    wanted = requests.completion_of({"prompt": ["a", "b"], "n": 2, "seed": 2**32 - 1})
    assert [(body.prompt, body.seed) for body in wanted.bodies if isinstance(body, Generate)] == [
        ("a", 2**32 - 1),
        ("a", 0),
        ("b", 2**32 - 1),
        ("b", 0),
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1]]}, "prompt"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 3, "n": 2}, "best_of"),
        ({"prompt": ["a"] * 40, "n": 2}, "n"),
        ({"prompt": "a", "messages": HELLO}, "messages"),
    ],
)
def test_a_completion_names_what_is_wrong(fields: dict[str, Any], param: str) -> None:
    """Among it tokens in the place of a text."""
    with pytest.raises(BadRequest) as caught:
        requests.completion_of(fields)
    assert caught.value.details["field"] == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [5]}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
    ],
)
def test_a_request_for_vectors_names_what_is_wrong(fields: dict[str, Any], param: str) -> None:
    """As the others do."""
    with pytest.raises(BadRequest) as caught:
        requests.vectors_of(fields)
    assert caught.value.details["field"] == param


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = sorted(
    {
        *requests.IGNORED,
        *requests.REFUSED,
        *requests._ChatRequest.__struct_fields__,
        *requests._CompletionRequest.__struct_fields__,
        *requests._EmbeddingRequest.__struct_fields__,
    }
)
BODIES = (
    JSON
    | st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6)
    | st.fixed_dictionaries(
        {
            "messages": st.lists(
                st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "name"]), JSON), max_size=3
            )
        },
        optional=dict.fromkeys(("tools", "tool_choice", "response_format", "stop", "stream_options"), JSON),
    )
)


@given(BODIES)
def test_any_json_is_translated_or_refused_by_name(body: Any) -> None:
    """Whatever comes, nothing but BadRequest with a field is raised."""
    for translate in (requests.chat_of, requests.completion_of, requests.vectors_of):
        try:
            translate(body)
        except BadRequest as error:
            assert isinstance(error.details["field"], str)
            assert error.details["field"]


@given(
    st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.lists(st.text(), min_size=1)), min_size=1)
)
def test_no_text_of_a_message_is_lost(messages: list[tuple[str, list[str]]]) -> None:
    """Parts are joined as they stand, and every message keeps its place."""
    asked = [{"role": role, "content": [{"type": "text", "text": text} for text in texts]} for role, texts in messages]
    found = body_of(messages=asked).messages
    assert [(one.role, one.content) for one in found] == [(role, "".join(texts)) for role, texts in messages]


# Answers


def test_a_whole_chat_reads_as_openais_type() -> None:
    """The package's own model of it takes every field, and finds ours beside."""
    answer = replies.whole(chat(), [generation(route="fast: small", adapter="a")], 5)
    found = chat_types.ChatCompletion.model_validate(json.loads(replies.sse(answer).removeprefix(b"data: ")))
    assert found.id == "ab" * 16
    assert (found.model, found.created, found.object) == ("small-q4", 5, "chat.completion")
    assert (found.choices[0].message.content, found.choices[0].finish_reason) == ("Hi.", "stop")
    assert found.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 3},
    }
    assert (found.olympus["reply_ids"], found.olympus["route"], found.olympus["adapter"]) == (
        ["ab" * 16],
        "fast: small",
        "a",
    )


def test_calls_of_tools_stand_where_clients_look_for_them() -> None:
    """content is null beside them, and parallel_tool_calls=false leaves one."""
    calls = [ToolCall(id=str(number), name="clock", arguments="{}") for number in range(2)]
    answered = generation("", tool_calls=calls, finish_reason="tool_calls")
    message = replies.whole(chat(), [answered], 0)["choices"][0]["message"]
    assert message["content"] is None
    assert [call["id"] for call in message["tool_calls"]] == ["0", "1"]
    single = replies.whole(chat(parallel_tool_calls=False), [answered], 0)["choices"][0]["message"]
    assert [call["id"] for call in single["tool_calls"]] == ["0"]


def test_a_prompt_counts_once_for_all_its_choices() -> None:
    """Two prompts of seven tokens with two choices each have been read twice, and answered four times."""
    wanted = requests.completion_of({"prompt": ["a", "b"], "n": 2})
    usage = replies.whole(wanted, [generation()] * 4, 0)["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (14, 8, 22)


@given(st.lists(st.text(), max_size=6), st.booleans())
def test_a_stream_says_what_the_whole_answer_would(texts: list[str], with_usage: bool) -> None:
    """Role first, then the text in pieces, the reason of the end, and the cost where it is wanted."""
    wanted = chat(stream=True, **({"stream_options": {"include_usage": True}} if with_usage else {}))
    writer = replies.Writer(wanted, ["ab" * 16], 5)
    pieces = [writer.part(0, GenerationPart(text=text)) for text in texts]
    final = generation("".join(texts))
    events = events_of(writer.begin() + b"".join(pieces) + writer.last(0, final) + writer.end())
    chunks = [chat_types.ChatCompletionChunk.model_validate(event) for event in events]
    assert {chunk.id for chunk in chunks} == {"ab" * 16}
    assert chunks[0].choices[0].delta.role == "assistant"
    usage = chunks.pop().usage if with_usage else None
    assert (usage is not None and usage.total_tokens == 9) is with_usage
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == final.text
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert chunks[-1].model == "small-q4"


def test_a_stream_tells_calls_before_its_end() -> None:
    """One delta holds them, each with its index, and the reason comes after."""
    writer = replies.Writer(chat(stream=True), ["a"], 5)
    calls = [ToolCall(id="c1", name="clock", arguments='{"a": 1}')]
    events = events_of(writer.last(0, generation("", tool_calls=calls, finish_reason="tool_calls")) + writer.end())
    assert events[0]["choices"][0]["delta"]["tool_calls"] == [
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "clock", "arguments": '{"a": 1}'}}
    ]
    assert [event["choices"][0]["finish_reason"] for event in events] == [None, "tool_calls"]


def test_probabilities_of_chats_and_completions() -> None:
    """A chat names bytes and alternatives of each token, a completion lists them side by side with their offsets."""
    tokens = [
        TokenChoice(token_id=1, text="Hi", logprob=-0.5, top=[TokenLogprob(token_id=1, text="Hi", logprob=-0.5)]),
        TokenChoice(token_id=2, text="é", logprob=-1.0),
    ]
    answered = generation("Hié", logprobs=tokens)
    wanted = chat(logprobs=True)
    found = chat_types.ChatCompletion.model_validate(replies.whole(wanted, [answered], 0) | {"olympus": None})
    content = found.choices[0].logprobs.content
    assert [(token.token, token.bytes) for token in content] == [("Hi", [72, 105]), ("é", [195, 169])]
    assert content[0].top_logprobs[0].logprob == -0.5
    wanted = requests.completion_of({"prompt": "a", "logprobs": 1, "stream": True})
    writer = replies.Writer(wanted, ["a"], 5)
    parts = [writer.part(0, GenerationPart(text=one.text, logprobs=[one])) for one in tokens]
    events = events_of(b"".join(parts) + writer.last(0, answered) + writer.end())
    assert [event["choices"][0]["logprobs"] for event in events[:2]] == [
        {"tokens": ["Hi"], "token_logprobs": [-0.5], "top_logprobs": [{"Hi": -0.5}], "text_offset": [0]},
        {"tokens": ["é"], "token_logprobs": [-1.0], "top_logprobs": [{}], "text_offset": [2]},
    ]


def test_vectors_are_numbers_or_base64_of_float32() -> None:
    """The package asks for base64 and decodes it itself."""
    reply = Embeddings(
        model="e",
        dimension=2,
        vectors=[struct.pack("<2f", 0.5, -2.0)],
        usage=Usage(prompt_tokens=3, completion_tokens=0),
    )
    plain = replies.vectors(requests.vectors_of({"input": "a", "dimensions": 2}), reply)
    assert plain["data"] == [{"object": "embedding", "index": 0, "embedding": [0.5, -2.0]}]
    assert plain["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    packed = replies.vectors(requests.vectors_of({"input": "a", "encoding_format": "base64"}), reply)
    assert base64.b64decode(packed["data"][0]["embedding"]) == reply.vectors[0]
    with pytest.raises(BadRequest, match="2 dimensions, not of 3"):
        replies.vectors(requests.vectors_of({"input": "a", "dimensions": 3}), reply)


def test_models_are_listed_with_aliases_and_profiles() -> None:
    """Everything that may be asked for is there once, and nothing that cannot be used."""

    def info(name: str, **changes: Any) -> ModelInfo:
        fields: dict[str, Any] = {"family": "f", "format": "gguf", "quantisation": "q", "parameters": 1}
        sizes = {"size_bytes": 1, "context_tokens": 512, "state": "available"}
        return ModelInfo(name=name, **{**fields, **sizes, **changes})

    version = ModelVersion(sha256="", size_bytes=1, added_at=12.5)
    models = Models(models=[info("a", aliases=["b"], versions=[version]), info("broken", state="unusable")])
    profiles = [
        Profile(name=name, description="", models=["a"], capabilities=[], options={}, origin="")
        for name in ("fast", "b")
    ]
    found = replies.listed(models, profiles)["data"]
    assert [(entry["id"], entry["created"]) for entry in found] == [("a", 12), ("b", 12), ("fast", 0)]
    assert [types.Model.model_validate(entry).olympus["kind"] for entry in found] == ["model", "alias", "profile"]


# Errors


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_every_error_has_openais_shape(code: str) -> None:
    """No client has to read ours, and what the caller has to change is never a 5xx, which would be asked again."""
    error = BY_CODE[code]("no")
    response = error_response(error)
    assert isinstance(response.body, bytes)
    body = json.loads(response.body)
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"] == "no"
    assert response.status == (400 if isinstance(error, Unsupported | Unprocessable) else error.http_status)


@pytest.mark.parametrize(
    ("error", "code", "param", "headers"),
    [
        (NotFound("no", model="x"), "model_not_found", "model", ()),
        (Unprocessable("no", prompt_tokens=9, context_tokens=4), "context_length_exceeded", None, ()),
        (QuotaExceeded("no", retry_after_s=2.1), "rate_limit_exceeded", None, (("retry-after", "3"),)),
        (WorkerLost("no"), "worker_lost", None, (("x-should-retry", "false"),)),
        (BadRequest("no", field="top_p"), "invalid_value", "top_p", ()),
    ],
)
def test_errors_carry_what_clients_decide_by(
    error: BusError, code: str, param: str | None, headers: tuple[tuple[str, str], ...]
) -> None:
    """The code that programs compare, the field, and whether and when to ask again."""
    found = error_body(error)["error"]
    assert (found["code"], found["param"]) == (code, param)
    assert error_response(error).headers == headers
