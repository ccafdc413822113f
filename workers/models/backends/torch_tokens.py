"""A tokenizer of the `tokenizers` library as a Tokenizer, and the text of tokens as they come."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer as Vocabulary
from tokenizers.decoders import DecodeStream


class TorchTokens:
    """Text to tokens and back. `source`: a tokenizer of transformers that has a `tokenizers` one behind it."""

    def __init__(self, source: Any) -> None:
        self._written = self._copy(source, takes_specials=True)
        self._plain = self._copy(source, takes_specials=False)
        self.bos_text: str = source.bos_token or ""
        self.eos_text: str = source.eos_token or ""
        self._bos: int | None = source.bos_token_id
        self.eos: int | None = source.eos_token_id
        # By what it does: configurations say it in several ways, not all of which are followed.
        self._adds_bos = self._bos is not None and self._written.encode("a").ids[:1] == [self._bos]
        added = self._written.get_added_tokens_decoder().values()
        self._specials = [token.content for token in added if token.special]

    @staticmethod
    def _copy(source: Any, *, takes_specials: bool) -> Vocabulary:
        # The switch is a state of the object; two objects may be used by two threads.
        copied: Vocabulary = Vocabulary.from_str(source.backend_tokenizer.to_str())
        copied.encode_special_tokens = not takes_specials
        copied.no_truncation()
        copied.no_padding()
        return copied

    def tokenize(self, text: str, *, with_special: bool) -> list[int]:
        """Token ids of `text`, nothing added. With `with_special`, the text of a control token becomes that token."""
        vocabulary = self._written if with_special else self._plain
        return list(vocabulary.encode(_encodable(text), add_special_tokens=False).ids)

    def begin(self, tokens: list[int]) -> list[int]:
        """`tokens` with the begin-of-text token in front, if the model wants one and it is not there yet."""
        if self._adds_bos and self._bos is not None and tokens[:1] != [self._bos]:
            return [self._bos, *tokens]
        return tokens

    def control_texts(self, text: str) -> set[str]:
        """Texts within `text` that would become control tokens."""
        return {special for special in self._specials if special in text}

    def text_of(self, token: int) -> str:
        """The text of one token for a report; of a control token its name."""
        return self._written.decode([token], skip_special_tokens=False)

    def stream(self) -> TextStream:
        """The text of one answer, token by token."""
        return TextStream(self._written)


class TextStream:
    """Text of tokens as they come: whole characters, and spaces as the tokenizer's decoder joins them."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._steps = DecodeStream(skip_special_tokens=True)
        self._tokens: list[int] = []
        self._shown = 0

    def feed(self, token: int) -> str:
        """The text that `token` completes."""
        self._tokens.append(token)
        text = self._steps.step(self._vocabulary, token) or ""
        self._shown += len(text)
        return text

    def finish(self) -> str:
        """What is left when nothing more comes: an unfinished character, as U+FFFD."""
        return self._vocabulary.decode(self._tokens, skip_special_tokens=True)[self._shown :]


def _encodable(text: str) -> str:
    # A lone surrogate, which JSON can carry, is no text to the library.
    return text.encode("utf-8", "replace").decode("utf-8")
