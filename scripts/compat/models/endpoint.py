"""A model of an endpoint elsewhere that speaks OpenAI's API, asked straight from this process.

Olympus reads its own remote models from a file at start, so one that an old configuration names cannot be added to it
while it runs; and its key belongs to this process' environment and has no business on the bus. Proxies of the
environment are not used and redirects are not followed: the key goes to the named host alone.
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from bus.settings import secret_of_environment
from models.config import ModelConfig
from models.errors import ModelError, ModelTimeout, OlympusUnreachable, UnknownModel
from models.model import ANSWER_S, Messages, Model, Reply

DEFAULT_URL: Final = "https://api.openai.com/v1"
DEFAULT_KEY_ENV: Final = "OPENAI_API_KEY"

# Bytes of an answer that are read at most, and of an error's text that are shown.
_ANSWER_BYTES: Final = 64 * 1024 * 1024
_SHOWN_BYTES: Final = 500


class EndpointModel(Model):
    """Options go to the endpoint as they are; what it does not know, it says itself. `timeout_s` limits its silences."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.base_url = config.base_url or DEFAULT_URL
        self._parts = urlsplit(self.base_url)
        if self._parts.scheme not in ("http", "https") or not self._parts.hostname or self._parts.username:
            raise ValueError(f"model {config.name}: base_url must be http://HOST[:PORT][/PATH] or https://...")

    @property
    def called(self) -> str:
        """The endpoint's name of it."""
        return self.config.path or self.config.name

    @property
    def key(self) -> str:
        """The key, looked up anew each time; "" where there is none. Never write it to a log or an error."""
        written = self.config.api_key
        if written.startswith("$"):
            return secret_of_environment(written.strip("${}"))
        if written.lower().startswith("env:"):
            return secret_of_environment(written[4:])
        return written or secret_of_environment(self.config.key_env or DEFAULT_KEY_ENV)

    @property
    def goes_on_with_text(self) -> bool:
        """False: most such endpoints only hold conversations."""
        return False

    def create_completion(self, prompt: str, **options: Any) -> Any:
        """See `Model.create_completion`."""
        return self._answer("/completions", {"prompt": prompt}, options)

    def create_chat_completion(self, messages: Messages, **options: Any) -> Any:
        """See `Model.create_chat_completion`."""
        return self._answer("/chat/completions", {"messages": list(messages)}, options)

    def create_embedding(self, input: str | Sequence[str], **options: Any) -> Reply:
        """See `Model.create_embedding`."""
        reply: Reply = self._answer("/embeddings", {"input": input if isinstance(input, str) else list(input)}, options)
        return reply

    def _answer(self, path: str, body: Reply, options: dict[str, Any]) -> Any:
        asked = options if path == "/embeddings" else {**self.config.options, **options}
        rest = {key: value for key, value in asked.items() if value is not None}
        limits = [one for one in (rest.pop("timeout_s", None), rest.pop("timeout", None)) if one is not None]
        whole = {"model": self.called, **body, **rest}
        timeout_s = float(limits[0]) if limits else ANSWER_S
        return self._streamed(path, whole, timeout_s) if rest.get("stream") else self._whole(path, whole, timeout_s)

    def _whole(self, path: str, body: Reply, timeout_s: float) -> Reply:
        connection, response = self._post(path, body, timeout_s)
        try:
            return self._object(response.read(_ANSWER_BYTES))
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error
        finally:
            connection.close()

    def _streamed(self, path: str, body: Reply, timeout_s: float) -> Iterator[Reply]:
        connection, response = self._post(path, body, timeout_s)
        try:
            while line := response.readline(_ANSWER_BYTES):
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                piece = self._object(data)
                if "error" in piece:
                    raise ModelError(f"{self._place}: {self._said(data)}")
                yield piece
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error
        finally:
            connection.close()

    def _post(self, path: str, body: Reply, timeout_s: float) -> tuple[http.client.HTTPConnection, Any]:
        """A connection and its answer, whose status is 200."""
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        if key := self.key:
            headers["Authorization"] = f"Bearer {key}"
        connection = self._connection(timeout_s)
        try:
            connection.request("POST", self._parts.path.rstrip("/") + path, json.dumps(body), headers)
            response = connection.getresponse()
            if response.status == 200:
                return connection, response
            said = self._said(response.read(_ANSWER_BYTES))
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._broken(error) from error
        connection.close()
        raise self._refused(response.status, said)

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=timeout_s)
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=ssl.create_default_context())

    def _refused(self, status: int, said: str) -> ModelError:
        message = f"{self._place} answers {status}: {said}"
        if status in (401, 403):
            where = "the configuration's api_key" if self.config.api_key else self.config.key_env or DEFAULT_KEY_ENV
            return ModelError(f"{message} (the key comes from {where})", status=status)
        return (UnknownModel if status == 404 else ModelError)(message, status=status)

    def _broken(self, error: Exception) -> ModelError:
        if isinstance(error, TimeoutError):
            return ModelTimeout(f"{self._place} was silent for too long")
        return OlympusUnreachable(f"{self._place} cannot be reached, or broke off: {error}")

    def _object(self, text: bytes) -> Reply:
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ModelError(f"{self._place} answers something else than a JSON object: {text[:_SHOWN_BYTES]!r}")
        return found

    def _said(self, text: bytes) -> str:
        """The endpoint's own words, without the key, which some repeat."""
        try:
            error = json.loads(text)["error"]
            words = str(error["message"] if isinstance(error, dict) else error)
        except (ValueError, KeyError, TypeError):
            words = text.decode(errors="replace")
        return (words.replace(self.key, "(the key)") if self.key else words)[:_SHOWN_BYTES]

    @property
    def _place(self) -> str:
        return f"the endpoint of model {self.name}, {self._parts.scheme}://{self._parts.netloc}"
