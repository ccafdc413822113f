"""Endpoints that speak OpenAI's API as a backend: Ollama, llama-server, vLLM, hosted ones.

It knows no weights and no tokenizer: the endpoint counts tokens, cuts nothing and keeps its own state between requests.

The key is read from the environment once and lives in the HTTP client alone: errors, logs and reprs name the variable
and the host. Proxies of the environment and ~/.netrc are not used, redirects are not followed: the key goes to the named
host or nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import urlsplit

from bus.settings import secret_of_environment
from schemas.errors import (
    BusError,
    DeadlineExceeded,
    Internal,
    NoWorker,
    TooLarge,
    Unprocessable,
    Unsupported,
    WorkerLost,
)
from workers.models.backends.backend import AdapterFile, Backend, Chunk, Outcome, Question, Remote
from workers.models.backends.openai_wire import (
    MAX_EXCERPT,
    Answer,
    Body,
    Flavour,
    ListedModel,
    SseLines,
    completion_body,
    decode_event,
    decode_models,
    decode_vectors,
    error_of,
    llama_server_context_tokens,
    ollama_context_tokens,
    words_of,
    words_of_body,
)
from workers.models.control import LoadModel
from workers.models.retry_after import retry_after_s

if TYPE_CHECKING:
    import httpx

# Seconds until an endpoint has taken the connection; one on another continent takes under one.
CONNECT_S: Final = 10.0
# Seconds to learn about an endpoint before the first request.
PROBE_S: Final = 10.0
# Bytes of an answer, also of one that streams. 2,048 vectors of 4,096 numbers as JSON are some 180 MB.
MAX_ANSWER_BYTES: Final = 256 * 1024 * 1024
# Bytes of an error that are looked at.
MAX_ERROR_BYTES: Final = 64 * 1024
# Connections kept open to one endpoint; more are opened as requests need them.
_KEPT_CONNECTIONS: Final = 16

_CAPABILITIES: Final[frozenset[str]] = frozenset({"generate", "chat", "embed", "tools", "json_schema"})


class Endpoint:
    """One base URL with its key: sends requests, and turns everything that goes wrong into our errors."""

    def __init__(self, remote: Remote, key: str) -> None:
        import httpx

        self.host = host_of(remote.base_url)
        self._remote = remote
        self._key = key
        self._errors = httpx
        self._root = remote.base_url.rstrip("/")
        self._client = httpx.AsyncClient(
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(remote.timeout_s, connect=min(CONNECT_S, remote.timeout_s)),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=_KEPT_CONNECTIONS),
            trust_env=False,
            follow_redirects=False,
        )

    def __repr__(self) -> str:
        return f"Endpoint({self.host!r})"

    def outside(self, path: str) -> str:
        """The URL of a path beside /v1, where programs keep what is not OpenAI's."""
        return self._root.removesuffix("/v1") + path

    async def get(self, url: str, timeout_s: float = PROBE_S) -> bytes:
        """The body of a GET. `url`: whole, or a path below the base. Raises as `answer` does."""
        return await self._whole("GET", url, None, timeout_s)

    async def post(self, url: str, body: Body, timeout_s: float | None = None) -> bytes:
        """The body of the answer to a POST. Raises as `answer` does."""
        return await self._whole("POST", url, body, timeout_s)

    async def stream(self, path: str, body: Body) -> AsyncGenerator[bytes, None]:
        """The `data` payloads of a streamed answer, up to and without [DONE].

        Raises the errors of `openai_wire.error_of`; NoWorker when nobody answers at the host, DeadlineExceeded when it
        falls silent, WorkerLost when the connection breaks or ends early, Internal when it does not speak the protocol.
        """
        with self._translated():
            async with self._client.stream("POST", self._root + path, json=body) as response:
                await self._check(response)
                kind = response.headers.get("content-type", "")
                if not kind.startswith("text/event-stream"):
                    kind = self.clean(kind)[:MAX_EXCERPT] or "no content type"
                    raise Internal(f"{self.host} was asked to stream and answered with {kind}")
                lines, size = SseLines(), 0
                async for piece in response.aiter_bytes():
                    size += len(piece)
                    self._check_size(size, MAX_ANSWER_BYTES)
                    for payload in lines.feed(piece):
                        if payload == b"[DONE]":
                            return
                        yield self._cleaned(payload)

    async def close(self) -> None:
        await self._client.aclose()

    def clean(self, text: str) -> str:
        """`text` without the key, which some endpoints repeat when they refuse it."""
        return text.replace(self._key, "[key]") if self._key else text

    def _cleaned(self, content: bytes) -> bytes:
        """The same of what the endpoint sends: before anything is cut, or half of the key could be left."""
        return content.replace(self._key.encode(), b"[key]") if self._key else content

    def refused(self, error: Any) -> NoReturn:
        """Raise what the endpoint wrote into its stream in the place of an answer."""
        raise Internal(f"{self.host} broke off: {words_of(error)}")

    async def _whole(self, method: str, url: str, body: Body | None, timeout_s: float | None) -> bytes:
        url = url if "://" in url else self._root + url
        timeout = self._client.timeout if timeout_s is None else timeout_s
        with self._translated():
            async with self._client.stream(method, url, json=body, timeout=timeout) as response:
                await self._check(response)
                return await self._read(response, MAX_ANSWER_BYTES)

    async def _read(self, response: httpx.Response, limit_bytes: int) -> bytes:
        parts, size = [], 0
        async for piece in response.aiter_bytes():
            size += len(piece)
            self._check_size(size, limit_bytes)
            parts.append(piece)
        return self._cleaned(b"".join(parts))

    def _check_size(self, size: int, limit_bytes: int) -> None:
        if size > limit_bytes:
            raise TooLarge(f"{self.host} answered with over {limit_bytes} bytes", limit_bytes=limit_bytes)

    async def _check(self, response: httpx.Response) -> None:
        if response.status_code == 200:
            return
        body = b""
        with contextlib.suppress(TooLarge):
            body = await self._read(response, MAX_ERROR_BYTES)
        raise error_of(
            response.status_code,
            words_of_body(body),
            host=self.host,
            key_env=self._remote.key_env,
            wait_s=retry_after_s(response.headers.get("retry-after"), time.time()),
        )

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """httpx's errors as ours. Their own messages stay out where they could repeat a header."""
        http = self._errors
        try:
            yield
        except (http.ConnectError, http.ConnectTimeout) as error:
            raise NoWorker(f"nobody answers at {self.host}: {self.clean(str(error)) or 'no connection'}") from error
        except http.TimeoutException as error:
            raise DeadlineExceeded(
                f"{self.host} was silent for {self._remote.timeout_s:g} s", timeout_s=self._remote.timeout_s
            ) from error
        except http.NetworkError as error:
            raise WorkerLost(f"the connection to {self.host} broke") from error
        except http.RemoteProtocolError as error:
            raise WorkerLost(f"{self.host} ended its answer early") from error
        except http.InvalidURL as error:
            raise Unprocessable(f"{self.host} is no host that can be asked: {error}", field="base_url") from error
        except http.HTTPError as error:
            raise Internal(f"the request to {self.host} failed: {type(error).__name__}") from error


class OpenAI:
    """A model behind an endpoint. `flavour` is the program that was recognised there, see `openai_wire`."""

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        flavour: Flavour,
        *,
        context_tokens: int,
        capabilities: frozenset[str] = _CAPABILITIES,
    ) -> None:
        self.context_tokens = context_tokens
        self.capabilities = capabilities
        # An endpoint that cannot be reached may be there again for the next request.
        self.lost = asyncio.Event()
        self.endpoint = endpoint
        self.flavour = flavour
        self._model = model

    def model_of(self, adapter: str | None) -> str:
        """What a request calls the model. Raises Unsupported for an adapter: OpenAI's API knows none."""
        if adapter is not None:
            raise Unsupported(f"{self.endpoint.host} takes no adapters", field="adapter")
        return self._model

    async def answer(self, question: Question) -> AsyncGenerator[Chunk | Outcome, None]:
        """Chunks as they come, then one Outcome. Closing the generator closes the connection.

        A prompt longer than the window is the endpoint's to refuse: it is never cut, whatever `truncate` says. Raises
        as `Endpoint.stream` does; what broke off holds the characters and pieces received in its details.
        """
        path = "/chat/completions" if question.text is None else "/completions"
        body = completion_body(question, self.model_of(question.options.adapter), self.flavour)
        answer = Answer()
        try:
            async with contextlib.aclosing(self.endpoint.stream(path, body)) as payloads:
                async for payload in payloads:
                    event = decode_event(payload)
                    if event.error is not None:
                        self.endpoint.refused(event.error)
                    chunk = answer.take(event)
                    if chunk is not None:
                        yield chunk
            if not answer.is_finished:
                raise WorkerLost(f"{self.endpoint.host} ended its answer early")
        except BusError as error:
            error.details |= {"received_characters": answer.characters, "received_pieces": answer.pieces}
            raise
        yield answer.outcome()

    async def embed(self, texts: Sequence[str], truncate: str) -> tuple[list[bytes], int]:
        """A vector of length 1 for each text, and the tokens read. Nothing is cut here, whatever `truncate` says."""
        body = {"model": self._model, "input": list(texts), "encoding_format": "float"}
        return decode_vectors(await self.endpoint.post("/embeddings", body), len(texts))

    async def score(self, prompts: Sequence[str], texts: Sequence[str], adapter: str | None) -> list[tuple[float, int]]:
        """Not in OpenAI's API. Raises Unsupported."""
        raise Unsupported(f"{self.endpoint.host} reports no log-probabilities of a given text")

    async def set_adapters(self, adapters: Sequence[AdapterFile]) -> None:
        """Not in OpenAI's API. Raises Unsupported unless there are none."""
        if adapters:
            raise Unsupported(f"{self.endpoint.host} takes no adapters", field="adapter")

    def forget(self, conversation_id: str) -> bool:
        """Nothing is kept here; what the endpoint keeps it does not let go by name."""
        return False

    async def close(self) -> None:
        """Close every connection; answers in flight end."""
        await self.endpoint.close()


async def load(command: LoadModel) -> Backend:
    """Connect to `command.remote`. Raises Unprocessable for a bad URL or key, NoWorker when nobody answers there,
    Unauthenticated when the key is refused, NotFound when the endpoint lists its models and has no such one.
    """
    remote = command.remote
    if remote is None:
        raise Unprocessable(f"{command.name} names no endpoint", model=command.name)
    endpoint = open_endpoint(remote, key_from_environment(remote))
    try:
        flavour, known = await _look(endpoint, remote.model)
    except BusError:
        await endpoint.close()
        raise
    capabilities = _CAPABILITIES
    if flavour in (Flavour.LLAMA_SERVER, Flavour.VLLM):
        capabilities |= {"grammar"}
    return OpenAI(endpoint, remote.model, flavour, context_tokens=_window(command, known), capabilities=capabilities)


def open_endpoint(remote: Remote, key: str) -> Endpoint:
    """An endpoint, nothing sent yet. Raises Unsupported without httpx, Unprocessable for a URL that is none."""
    try:
        return Endpoint(remote, key)
    except ImportError as error:
        raise Unsupported("httpx is not installed; install the extra 'models'") from error


def host_of(base_url: str) -> str:
    """Scheme, host and port, for messages. Raises Unprocessable for what is no such URL or carries a secret."""
    try:
        parts = urlsplit(base_url)
        # Reading the port checks it.
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url or not base_url.isprintable():
        raise Unprocessable("base_url is not of the form http://host/v1 or https://host/v1", field="base_url")
    if parts.username is not None or parts.query or parts.fragment:
        raise Unprocessable(
            f"base_url for {parts.hostname} holds more than host and path; a key belongs in the variable key_env names",
            field="base_url",
        )
    return f"{parts.scheme}://{parts.netloc}"


def key_from_environment(remote: Remote) -> str:
    """The key in the variable that `remote` names; "" for none. Raises Unprocessable naming the variable, never more."""
    if not remote.key_env:
        return ""
    key = secret_of_environment(remote.key_env)
    if not key:
        raise Unprocessable(f"the environment has no {remote.key_env}, the key for {host_of(remote.base_url)}")
    # Such a key could not be sent, and the library's complaint would show it.
    if not all("!" <= character <= "~" for character in key):
        raise Unprocessable(f"{remote.key_env} holds characters that no key has")
    return key


async def _look(endpoint: Endpoint, model: str) -> tuple[Flavour, int | None]:
    """Which program answers, and its window for `model` where it says so. A list of models is not everybody's."""
    try:
        listed = decode_models(await endpoint.get("/models"))
    except BusError as error:
        if error.details.get("status") in (404, 405, 501):
            return Flavour.PLAIN, None
        raise
    if not listed:
        return Flavour.PLAIN, None
    entry = _entry(listed, model)
    flavour = listed[0].flavour
    # llama-server answers to any name with the one model it has.
    if entry is None and flavour is Flavour.LLAMA_SERVER:
        entry = listed[0]
    if entry is None and flavour is Flavour.PLAIN:
        # Gateways list some of what they take.
        return flavour, None
    if entry is None:
        names = ", ".join(sorted(each.id for each in listed)[:8])
        raise error_of(404, f"no model {model!r}; it has {names}", host=endpoint.host, key_env="")
    return flavour, await _context_tokens(endpoint, flavour, entry, model)


def _entry(listed: Sequence[ListedModel], model: str) -> ListedModel | None:
    # Ollama lists "name:latest" and takes "name".
    return next((entry for entry in listed if entry.id in (model, f"{model}:latest")), None)


async def _context_tokens(endpoint: Endpoint, flavour: Flavour, entry: ListedModel, model: str) -> int | None:
    """What the program says beside OpenAI's API; what it does not say is no reason to refuse it."""
    with contextlib.suppress(BusError):
        if flavour is Flavour.LLAMA_SERVER:
            return llama_server_context_tokens(await endpoint.get(endpoint.outside("/props"))) or entry.context_tokens
        if flavour is Flavour.OLLAMA:
            return ollama_context_tokens(await endpoint.post(endpoint.outside("/api/show"), {"model": model}, PROBE_S))
    return entry.context_tokens


def _window(command: LoadModel, known: int | None) -> int:
    """The smaller of what the endpoint says and what the rules say; the setting where neither does."""
    told = [tokens for tokens in (known, command.context_tokens) if tokens]
    models = command.settings.models
    return min(told) if told else models.context_tokens or models.max_context_tokens
