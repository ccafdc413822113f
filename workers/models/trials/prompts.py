"""Prompts of an exact number of tokens, made of plain words; knows no tokenizer but the count it is given."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from schemas.errors import Unprocessable

Count = Callable[[list[str]], Awaitable[list[int]]]

_WORDS: Final = (
    "apple river stone window garden music winter bridge yellow forest paper silver morning engine island letter"
    " mountain bottle kitchen market planet rabbit season temple valley wagon anchor basket candle desert eagle feather"
    " guitar hammer insect jacket kettle ladder mirror needle orange pencil quarter ribbon saddle thunder umbrella"
    " violin walnut xylem yogurt zipper acorn beacon cactus dolphin ember falcon glacier harbor ivory jungle"
).split()

# Repeated at the end until the count is right: nearly every vocabulary has one that is a token however often it comes.
_FILLERS: Final = (" a", " the", "!", " 1", "\n", "7", " x", ".", " to", "z")

# Words tried around the estimate, and tokens that fillers may have to add.
_WINDOW: Final = 12
_FILLED_MAX: Final = 64

# Times the estimate is improved, and batches of variants that are tried.
_TRIES: Final = 6

# Texts of one request (`model.tokenize` takes a thousand) and their characters together.
_TEXTS: Final = 500
_CHARACTERS: Final = 2_000_000


async def exact_prompts(count: Count, tokens: int, wanted: int, seed: int) -> list[str]:
    """`wanted` prompts of exactly that many tokens, which differ from their first words on where that is possible.

    count: the tokens of each text. Of very few tokens there may be fewer different ones: then they repeat. Raises
    Unprocessable when no text with that count is found.
    """
    source = random.Random(seed)
    words, tail = await _exact(count, tokens, source)
    found = {" ".join(words) + tail: None}
    for _ in range(_TRIES):
        if len(found) >= wanted:
            break
        size = max(min(_TEXTS, _CHARACTERS // (4 * tokens)), 1)
        texts = [_varied(words, tail, source) for _ in range(min(size, 2 * wanted))]
        counts = await count(texts)
        found.update({text: None for text, one in zip(texts, counts, strict=True) if one == tokens})
    prompts = list(found)
    return [prompts[index % len(prompts)] for index in range(wanted)]


def _varied(words: Sequence[str], tail: str, source: random.Random) -> str:
    changed = min(len(words), 3)
    return " ".join([*source.choices(_WORDS, k=changed), *words[changed:]]) + tail


async def _exact(count: Count, tokens: int, source: random.Random) -> tuple[list[str], str]:
    """Words and what follows them, together of that many tokens."""
    words = source.choices(_WORDS, k=tokens)
    (all_tokens,) = await count([" ".join(words)])
    estimate = tokens * tokens // max(all_tokens, 1)
    for _ in range(_TRIES):
        sizes = _sizes(estimate, tokens)
        counts = await count([" ".join(words[:size]) for size in sizes])
        below = [
            (size, tokens - one) for size, one in zip(sizes, counts, strict=True) if 0 <= tokens - one <= _FILLED_MAX
        ]
        # The most words first: they are what makes prompts differ.
        texts = [(size, filler * missing) for size, missing in reversed(below) for filler in _FILLERS]
        texts = texts[: max(_CHARACTERS // (4 * tokens), len(_FILLERS))]
        counted = await count([" ".join(words[:size]) + tail for size, tail in texts]) if texts else []
        for (size, tail), one in zip(texts, counted, strict=True):
            if one == tokens:
                return words[:size], tail
        middle = len(sizes) // 2
        per_word = max(counts[middle] / max(sizes[middle], 1), 0.1)
        estimate = min(max(sizes[middle] + int((tokens - counts[middle]) / per_word), 0), tokens)
    raise Unprocessable(f"no text of exactly {tokens} tokens was found for this tokenizer", prompt_tokens=tokens)


def _sizes(estimate: int, tokens: int) -> list[int]:
    """Numbers of words to try."""
    window = min(_WINDOW, max(_CHARACTERS // (16 * tokens), 1))
    return list(range(max(estimate - window, 0), min(estimate + window, tokens) + 1))
