"""A model as agents hold it: llama-cpp-python's calls on a model that lives in Olympus. It holds a name, no weights."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from models import shapes
from models.config import ModelConfig
from models.house import House
from schemas.bodies.model import Embed, Embeddings, ModelTokenize

# Seconds an answer may take, unless the call says `timeout_s`. The old ModelManager had no limit; slow machines make two
# tokens a second.
ANSWER_S: Final = 1800.0

Messages = Iterable[Mapping[str, Any]]
Reply = dict[str, Any]


class Model(abc.ABC):
    """What every model offers. Threads may share it.

    Options are those of llama-cpp-python and of Olympus' `model.generate`; `timeout_s` limits the whole answer. None is
    the default, which the model's configuration may set. Raises ModelError.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @property
    def name(self) -> str:
        """What the configuration calls it."""
        return self.config.name

    @property
    @abc.abstractmethod
    def called(self) -> str:
        """What whoever answers calls it: Olympus, or an endpoint elsewhere."""

    @abc.abstractmethod
    def create_completion(self, prompt: str, **options: Any) -> Any:
        """Go on with `prompt` as it stands: llama-cpp-python's dict, or with `stream=True` an iterator of them."""

    @abc.abstractmethod
    def create_chat_completion(self, messages: Messages, **options: Any) -> Any:
        """Answer a conversation: llama-cpp-python's dict, or with `stream=True` an iterator of them."""

    @abc.abstractmethod
    def create_embedding(self, input: str | Sequence[str], **options: Any) -> Reply:
        """Vectors of a text or of several, in OpenAI's dict."""

    def generate(self, prompt: str | Messages, **options: Any) -> Any:
        """The text of an answer, or with `stream=True` an iterator of its pieces.

        A text is gone on with as it stands, control tokens included; with `system_prompt`, and for a list of messages,
        it is a conversation.
        """
        system = options.pop("system_prompt", None)
        if isinstance(prompt, str) and system is None and self.goes_on_with_text:
            reply = self.create_completion(prompt, **options)
        else:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
            if system is not None:
                messages.insert(0, {"role": "system", "content": system})
            reply = self.create_chat_completion(messages, **options)
        return filter(None, map(shapes.text_of, reply)) if options.get("stream") else shapes.text_of(reply)

    def embed(self, input: str | Sequence[str], **options: Any) -> Any:
        """The vector of a text, or of a list of texts a list of vectors."""
        vectors = [one["embedding"] for one in self.create_embedding(input, **options)["data"]]
        return vectors[0] if isinstance(input, str) else vectors

    def __call__(self, prompt: str, **options: Any) -> Any:
        """The same as `create_completion`."""
        return self.create_completion(prompt, **options)

    @property
    def goes_on_with_text(self) -> bool:
        """True for a model that completes plain text; others are asked in a conversation."""
        return True


class HouseModel(Model):
    """A model of Olympus, whose name there is `called`. A question loads it again, wherever it was meanwhile."""

    def __init__(self, config: ModelConfig, house: House, called: str, window: int) -> None:
        super().__init__(config)
        self._called = called
        self._house = house
        self._window = window

    @property
    def called(self) -> str:
        """Its name in Olympus."""
        return self._called

    def create_completion(self, prompt: str, **options: Any) -> Any:
        """See `Model.create_completion`. echo: the prompt before the answer; suffix: a text behind it."""
        is_streamed, timeout_s, options = self._ways(options)
        before = prompt if options.pop("echo", False) else ""
        after = options.pop("suffix", None) or ""
        body = shapes.generate_body(self.called, prompt, options)
        if is_streamed:
            parts = self._house.stream("model.generate", body, timeout_s=timeout_s)
            return shapes.completion_pieces(parts, self.name, before, after)
        reply = self._house.ask("model.generate", body, timeout_s=timeout_s)
        return shapes.completion(reply, self.name, before, after)

    def create_chat_completion(self, messages: Messages, **options: Any) -> Any:
        """See `Model.create_chat_completion`. tools, tool_choice, response_format: in OpenAI's shapes."""
        is_streamed, timeout_s, options = self._ways(options)
        body = shapes.chat_body(self.called, messages, options)
        if is_streamed:
            return shapes.chat_pieces(self._house.stream("model.chat", body, timeout_s=timeout_s), self.name)
        return shapes.chat_completion(self._house.ask("model.chat", body, timeout_s=timeout_s), self.name)

    def create_embedding(self, input: str | Sequence[str], **options: Any) -> Reply:
        """See `Model.create_embedding`. truncate: what goes of a text that is too long, as in `model.embed`."""
        texts = [input] if isinstance(input, str) else list(input)
        body = Embed(model=self.called, texts=texts, truncate=options.get("truncate", "refuse"))
        reply: Embeddings = self._house.ask("model.embed", body, timeout_s=options.get("timeout_s", ANSWER_S))
        return shapes.embedding([shapes.vector_of(one) for one in reply.vectors], reply.usage, self.name)

    def tokenize(self, text: str | bytes) -> list[int]:
        """Ids of a text's tokens; nothing is added."""
        plain = text.decode() if isinstance(text, bytes) else text
        body = ModelTokenize(model=self.called, texts=[plain], with_tokens=True)
        tokens: list[list[int]] = self._house.ask("model.tokenize", body).tokens
        return tokens[0]

    def n_ctx(self) -> int:
        """Tokens of the context window."""
        return self._window

    def _ways(self, options: dict[str, Any]) -> tuple[bool, float, dict[str, Any]]:
        """Whether to stream, seconds the answer may take, and the options of the answer itself."""
        rest = {**self.config.options, **options}
        is_streamed = bool(rest.pop("stream", False))
        limits = [one for one in (rest.pop("timeout_s", None), rest.pop("timeout", None)) if one is not None]
        return is_streamed, limits[0] if limits else ANSWER_S, rest
