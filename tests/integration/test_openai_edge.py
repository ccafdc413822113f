"""The stock `openai` package against a real gateway, broker and model service with the demo model."""

from __future__ import annotations

import asyncio
import functools
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import pytest

from bus.settings import Settings
from bus.tokens import token_source
from schemas.bodies.model import ModelShow
from tests.edge_house import EdgeHouse
from workers.gateway.openai.routes import openai_routes
from workers.models.catalogue import SHIPPED_ROOT

openai = pytest.importorskip("openai", reason="the openai package is not installed")
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

NAME = "olympus-demo"
DOCUMENTED = json.loads((SHIPPED_ROOT / "documented.json").read_text())
QUESTION = DOCUMENTED[0]["messages"]
ANSWER = DOCUMENTED[0]["answer"]
CLOCK = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "The time of a city.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
WAIT_S = 20.0


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeHouse]:
    """A home where everybody has to sign in; a token of its own opens it."""
    home = tmp_path_factory.mktemp("openai")
    with EdgeHouse(
        home,
        services=("memory", "models"),
        routes=lambda settings, client: {"models": openai_routes()},
        **{"auth.required": True},
    ) as house:
        yield house


def key_of(settings: Settings) -> str:
    """An API key: the token of the home itself."""
    token = token_source(settings)
    assert token is not None
    found = token()
    assert found
    return found


@pytest.fixture(scope="module")
def client(house: EdgeHouse) -> Iterator[Any]:
    """The client as a program would make it, but without second tries."""
    with openai.OpenAI(
        base_url=house.url("models") + "/v1", api_key=key_of(house.settings), max_retries=0, timeout=WAIT_S
    ) as client:
        yield client


def until_idle(house: EdgeHouse) -> None:
    """Wait until the demo model answers nobody."""
    deadline = time.monotonic() + WAIT_S
    while house.bus("model.show", ModelShow(model=NAME)).in_flight:
        assert time.monotonic() < deadline, "the model still works for a client that has left"


def test_a_chat_is_answered(client: Any) -> None:
    """Text, reason, usage and model stand where the package looks for them, and the id is that of the reply."""
    answer = client.chat.completions.create(model=NAME, messages=QUESTION, temperature=0, user="somebody")
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == NAME
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    assert answer.olympus["reply_ids"] == [answer.id]
    assert len(answer.id) == 32
    assert answer._request_id == answer.id


def test_a_chat_streams(client: Any) -> None:
    """Role first, text in many pieces, one reason at the end, usage last; the id is the reply's in every chunk."""
    with client.chat.completions.create(
        model=NAME, messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    usage = chunks.pop()
    assert usage.choices == []
    assert usage.usage.completion_tokens > 3
    assert usage.olympus["reply_ids"] == [usage.id]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    assert len(chunks) > 5
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]
    assert {chunk.id for chunk in chunks} == {usage.id}


def test_feedback_knows_the_answer_by_its_id(house: EdgeHouse, client: Any) -> None:
    """What the learning service hears of an answer carries the id that the client has."""

    async def is_heard_of(stream: bool) -> bool:
        async with house.client.subscribe("model.answered") as events:
            asked: dict[str, Any] = {"model": NAME, "messages": QUESTION, "temperature": 0, "stream": stream}
            answer = await asyncio.to_thread(client.chat.completions.create, **asked)
            id = (await asyncio.to_thread(list, answer))[0].id if stream else answer.id
            async with asyncio.timeout(WAIT_S):
                async for event in events:
                    if event.body["reply_id"] == id:
                        return True
            return False

    for stream in (False, True):
        assert house.run(functools.partial(is_heard_of, stream))


def test_the_asynchronous_client_is_answered(house: EdgeHouse) -> None:
    """Several at once, of which one streams."""

    async def ask() -> tuple[Any, str]:
        key = key_of(house.settings)
        async with openai.AsyncOpenAI(base_url=house.url("models") + "/v1", api_key=key, max_retries=0) as client:
            whole = client.chat.completions.create(model=NAME, messages=QUESTION, temperature=0)
            streamed = client.chat.completions.create(model=NAME, messages=QUESTION, temperature=0, stream=True)
            answer, stream = await asyncio.gather(whole, streamed)
            return answer, "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    answer, text = asyncio.run(ask())
    assert answer.choices[0].message.content == text == ANSWER


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_tool_is_called(client: Any, is_streamed: bool) -> None:
    """A named tool must be called; its arguments fulfil its schema and its answer may be given back."""
    asked: dict[str, Any] = {
        "model": NAME,
        "messages": QUESTION,
        "tools": [CLOCK],
        "tool_choice": {"type": "function", "function": {"name": "clock"}},
        "temperature": 0,
        "max_tokens": 200,
    }
    if is_streamed:
        with client.chat.completions.stream(**asked) as stream:
            for _ in stream:
                pass
            choice = stream.get_final_completion().choices[0]
    else:
        choice = client.chat.completions.create(**asked).choices[0]
    call = choice.message.tool_calls[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content in (None, "")
    assert call.function.name == "clock"
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
    answered = client.chat.completions.create(
        model=NAME,
        messages=[*QUESTION, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "noon"}],
        tools=[CLOCK],
        max_tokens=5,
    )
    assert answered.usage.completion_tokens > 0


def test_an_answer_has_the_shape_of_a_schema(client: Any) -> None:
    """json_schema is kept to the letter, json_object gives an object."""
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    strict = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    answer = client.chat.completions.create(model=NAME, messages=QUESTION, response_format=strict, max_tokens=64)
    assert set(json.loads(answer.choices[0].message.content)) == {"ok"}


def test_choices_seeds_stops_and_probabilities(client: Any) -> None:
    """n choices come side by side, also streamed; one seed gives the same again; a stop ends the text before it."""
    asked = {"model": NAME, "messages": QUESTION, "n": 2, "seed": 7, "temperature": 1.5, "max_tokens": 12}
    first = client.chat.completions.create(**asked)
    again = client.chat.completions.create(**asked)
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1]
    assert texts == [choice.message.content for choice in again.choices]
    streamed = ["", ""]
    with client.chat.completions.create(**asked, stream=True) as stream:
        for chunk in stream:
            streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts
    stopped = client.chat.completions.create(
        model=NAME, messages=QUESTION, temperature=0, stop=["demo"], logprobs=True, top_logprobs=2
    )
    assert stopped.choices[0].message.content == ANSWER.partition("demo")[0]
    tokens = stopped.choices[0].logprobs.content
    assert len(tokens[0].top_logprobs) == 2
    assert tokens[0].logprob <= 0


def test_a_prompt_is_continued(client: Any) -> None:
    """The older shape: several prompts, streaming, a limit, probabilities side by side."""
    answer = client.completions.create(model=NAME, prompt=["2 + 3 =", "Tell"], max_tokens=4, temperature=0, logprobs=1)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert len(answer.choices[0].logprobs.tokens) == len(answer.choices[0].logprobs.token_logprobs) > 0
    with client.completions.create(model=NAME, prompt="2 + 3 =", max_tokens=4, temperature=0, stream=True) as stream:
        text = "".join(chunk.choices[0].text for chunk in stream)
    assert text == answer.choices[0].text


def test_vectors_come_in_both_formats(client: Any) -> None:
    """The package asks for base64 by itself; floats are the same numbers."""
    packed = client.embeddings.create(model=NAME, input=["Hello", "there"])
    plain = client.embeddings.create(model=NAME, input="Hello", encoding_format="float")
    assert [item.index for item in packed.data] == [0, 1]
    assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-5)
    assert math.fsum(value * value for value in plain.data[0].embedding) == pytest.approx(1, abs=1e-3)
    assert packed.usage.total_tokens == packed.usage.prompt_tokens > 0


def test_models_and_profiles_are_listed(client: Any) -> None:
    """What is listed can be asked for; a profile answers with the model it chose, and why."""
    listed = {model.id: model for model in client.models.list()}
    assert listed[NAME].object == "model"
    assert listed["fast"].olympus["kind"] == "profile"
    assert client.models.retrieve(NAME).owned_by == "olympus"
    assert client.models.retrieve("fast").id == "fast"
    answer = client.chat.completions.create(model="fast", messages=QUESTION, temperature=0, max_tokens=4)
    assert answer.model == NAME
    assert answer.olympus["route"]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no/such")


@pytest.mark.parametrize(
    ("changes", "error", "code", "param"),
    [
        ({"model": "no-such-model"}, "NotFoundError", "model_not_found", "model"),
        ({"model": "no such model"}, "BadRequestError", "invalid_value", "model"),
        ({"temperature": 11}, "BadRequestError", "invalid_value", "temperature"),
        ({"messages": []}, "BadRequestError", "invalid_value", "messages"),
        (
            {"messages": [{"role": "user", "content": "word " * 3000}]},
            "BadRequestError",
            "context_length_exceeded",
            None,
        ),
        ({"logit_bias": {"1": 5}}, "BadRequestError", "unsupported_parameter", "logit_bias"),
        ({"extra_body": {"adapter": "nobody"}}, "NotFoundError", "not_found", None),
        ({"extra_body": {"response_fromat": {}}}, "BadRequestError", "invalid_value", "response_fromat"),
    ],
)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_errors_raise_what_programs_catch(
    client: Any, changes: dict[str, Any], error: str, code: str, param: str | None, is_streamed: bool
) -> None:
    """Also of a stream: the status is not told before it is known."""
    with pytest.raises(getattr(openai, error)) as caught:
        client.chat.completions.create(**{"model": NAME, "messages": QUESTION, "stream": is_streamed, **changes})
    assert (caught.value.code, caught.value.param) == (code, param)


def test_a_wrong_key_is_an_authentication_error(house: EdgeHouse) -> None:
    """On every route, also where the answer would stream."""
    with openai.OpenAI(base_url=house.url("models") + "/v1", api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as caught:
            stranger.models.list()
        assert caught.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            stranger.chat.completions.create(model=NAME, messages=QUESTION, stream=True)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b'{"messages": [' + b"[" * 5000,
        b'{"messages": "hi"}',
        b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": %d}' % 10**30,
    ],
)
def test_a_body_that_is_no_request_is_a_bad_request(house: EdgeHouse, body: bytes) -> None:
    """In OpenAI's shape, on every route."""
    httpx = pytest.importorskip("httpx")
    head = {"authorization": f"Bearer {key_of(house.settings)}", "content-type": "application/json"}
    for path in ("chat/completions", "completions", "embeddings"):
        answer = httpx.post(f"{house.url('models')}/v1/{path}", content=body, headers=head)
        assert answer.status_code == 400, (path, answer.text)
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_the_page_of_the_port_describes_these_routes(house: EdgeHouse) -> None:
    """What a body cannot do without, and errors in their own shape, in place of the catalogue's."""
    httpx = pytest.importorskip("httpx")
    paths = httpx.get(house.url("models") + "/openapi.json").json()["paths"]
    for path, field in (("chat/completions", "messages"), ("completions", "prompt"), ("embeddings", "input")):
        operation = paths[f"/v1/{path}"]["post"]
        assert operation["requestBody"]["content"]["application/json"]["schema"]["required"] == [field]
        error = operation["responses"]["default"]["content"]["application/json"]["schema"]
        assert error["required"] == ["error"]


def test_a_client_that_leaves_ends_its_answer(house: EdgeHouse, client: Any) -> None:
    """In the middle of a stream, and while it waits for a whole answer."""
    endless = {
        "model": NAME,
        "prompt": "Tell",
        "max_tokens": 480,
        "temperature": 5.0,
        "seed": 3,
        "extra_body": {"top_k": 0, "min_p": 0.0, "conversation_id": "leaver"},
    }
    with client.completions.create(**endless, stream=True) as stream:
        next(iter(stream))
    until_idle(house)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.2).completions.create(**endless, n=64)
    until_idle(house)
