"""The flags `--model`, `--temperature` and their like: short for `--set`, on what starts services."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Final

# Flags that stand for `--set KEY=...`, and the key of each. They have OLLM_* variables too (bus.settings.OTHER_VARIABLES).
_MODEL_FLAGS: Final = (
    ("--model", "models.default", "NAME", "model used when a request names none"),
    ("--provider", "models.provider", "NAME", "llama.cpp, transformers, vllm, ollama or openai"),
    ("--host", "models.host", "URL", "address of that provider, where it is a server"),
    ("--temperature", "models.temperature", "NUMBER", "temperature where neither request nor rules name one"),
    ("--max-tokens", "models.max_tokens", "NUMBER", "tokens of one answer when the request names no limit"),
    ("--context-size", "models.context_tokens", "NUMBER", "tokens of context; 0 takes the model's own"),
)


class _SetOne(argparse.Action):
    """Adds `KEY=VALUE` to what `--set` collects, so that it is checked and handed on in the same way."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        namespace.set = [*namespace.set, f"{self.const}={values}"]


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """`--model`, `--temperature` and the others, for what starts services."""
    group = parser.add_argument_group("models, for what starts services")
    for flag, key, metavar, text in _MODEL_FLAGS:
        group.add_argument(
            flag, metavar=metavar, action=_SetOne, const=key, default=argparse.SUPPRESS, help=f"{text} ({key})"
        )
