"""The grammar that an answer must follow, from a grammar or a JSON Schema of a request, judged before it is used."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Final

import msgspec

from schemas.errors import Unprocessable
from workers.models.backends.backend import Options
from workers.models.backends.gbnf import BadGrammar, check_grammar
from workers.models.backends.json_grammar import schema_grammar

# Schemas longer than this are judged in a thread: the time grows to a quarter of a second.
_LONG_SCHEMA: Final = 4_096


async def grammar_of(options: Options) -> str | None:
    """The grammar that the answer must follow. Raises Unprocessable."""
    if options.json_schema is not None:
        schema = msgspec.json.encode(options.json_schema)
        return await _judged(len(schema), lambda: _grammar_of_schema(schema))
    if options.grammar is not None:
        grammar = options.grammar
        return await _judged(len(grammar), lambda: _checked(grammar))
    return None


async def _judged(size: int, judge: Callable[[], str]) -> str:
    try:
        return judge() if size <= _LONG_SCHEMA else await asyncio.to_thread(judge)
    except BadGrammar as error:
        raise Unprocessable(f"the answer cannot be held to this: {error}", field="grammar") from error


@functools.lru_cache(maxsize=64)
def _grammar_of_schema(schema: bytes) -> str:
    return _checked(schema_grammar(msgspec.json.decode(schema)))


@functools.lru_cache(maxsize=64)
def _checked(grammar: str) -> str:
    check_grammar(grammar)
    return grammar
