"""Renders a conversation through a model's chat template and turns it into tokens that a user's text cannot forge.

Templates come from the model file, so they are strangers' code: they run in jinja2's immutable sandbox, with the
options and names that template authors rely on (trim_blocks, lstrip_blocks, `raise_exception`, `strftime_now`,
`tojson`, bos and eos text; documented in the Hugging Face transformers guide on chat templates).
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from schemas.bodies.model import ChatMessage
from schemas.errors import Unprocessable
from workers.models.backends.backend import Tokenizer

# Used when the model brings no template: ChatML, which most instruction-tuned models read at least tolerably.
FALLBACK_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Without a template the model may not know ChatML's end token, so its text ends the answer too.
FALLBACK_STOP: Final = ("<|im_end|>",)

_PRIVATE_USE: Final = range(0xE000, 0xF8FF)


class ChatTemplate:
    """A compiled chat template; `source` None takes the fallback. Raises Unprocessable when it does not compile."""

    def __init__(self, source: str | None, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.stop = FALLBACK_STOP if source is None else ()
        try:
            self._template = _compile(FALLBACK_TEMPLATE if source is None else source)
        except TemplateError as error:
            raise Unprocessable(f"the model's chat template does not compile: {error}") from error

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """The conversation as one text that ends where the assistant's answer begins.

        Raises Unprocessable with the template's own words when it refuses the conversation or fails.
        """
        try:
            return self._template.render(
                messages=[{"role": message.role, "content": message.content} for message in messages],
                add_generation_prompt=True,
                bos_token=self._tokenizer.bos_text,
                eos_token=self._tokenizer.eos_text,
            )
        # A template is code: whatever it raises (a wrong type, a division, its own refusal) is the request's answer.
        except Exception as error:
            raise Unprocessable(f"the model's chat template refused the conversation: {error}") from error

    def tokens(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Token ids of the rendered conversation. Control tokens come from the template only.

        Content that spells a control token ("<|im_end|>") is cut inside that spelling by a character that occurs
        nowhere in the conversation; the parts are tokenized one by one, so the spelling stays plain text.
        """
        tokenizer = self._tokenizer
        guard = _unused_character(messages)
        text = self.render([_defused(message, tokenizer, guard) for message in messages])
        parts = [tokenizer.tokenize(part, with_special=True) for part in text.split(guard) if part]
        return tokenizer.begin([token for part in parts for token in part])


def _defused(message: ChatMessage, tokenizer: Tokenizer, guard: str) -> ChatMessage:
    content = message.content
    while True:
        forged = {text for part in content.split(guard) for text in tokenizer.control_texts(part) if len(text) > 1}
        forged = {text for text in forged if text in content}
        if not forged:
            break
        for text in sorted(forged, key=len, reverse=True):
            content = content.replace(text, text[0] + guard + text[1:])
    return message if content is message.content else ChatMessage(role=message.role, content=content)


def _unused_character(messages: Sequence[ChatMessage]) -> str:
    used = {character for message in messages for character in message.content if ord(character) in _PRIVATE_USE}
    return next((chr(code) for code in _PRIVATE_USE if chr(code) not in used), "\uf8ff")


def _compile(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(source)


def _to_json(value: Any, indent: int | None = None) -> str:
    """jinja2's own filter escapes for HTML, which models were not trained on."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
