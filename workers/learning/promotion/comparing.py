"""Asks PEFT and the served model for the same texts, and compares. Knows no deployment."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from schemas.bodies.learning_data import RowInfo
from schemas.errors import Unprocessable
from workers.learning.promotion.equality import Equality, Probe, compare
from workers.learning.promotion.reference import Scored, Task, Text
from workers.learning.promotion.reference_process import ask_peft
from workers.learning.promotion.served import Served
from workers.learning.training.training import Nest

# Texts of the target, where the adapter matters, and of what it should leave alone.
_TARGETS: Final = 12
_OTHERS: Final = 4

# Longer conversations show no more, and take longer.
_CHARACTERS: Final = 4_000

# For an adapter whose rows are all forgotten or too long, and beside the others: any text shows a wrong conversion.
_PLAIN: Final = (
    Text(prompt="The name of the capital of", answer=" a country is written on its maps."),
    Text(prompt="One, two, three,", answer=" four, five, six, seven"),
)


def texts_of(held_out: Sequence[RowInfo], retention: Sequence[RowInfo]) -> list[Text]:
    """At most sixteen texts to compare on, and two that are always the same."""
    short = [[row for row in rows if _characters(row) <= _CHARACTERS] for rows in (held_out, retention)]
    return [*map(_text, short[0][:_TARGETS]), *map(_text, short[1][:_OTHERS]), *_PLAIN]


async def compare_with_peft(
    served: Served,
    nest: Nest,
    *,
    model: str,
    adapter: str,
    base: str,
    folder: str,
    texts: Sequence[Text],
    quantised: bool,
) -> Equality:
    """Whether `adapter` of the running `model` computes what PEFT does with `folder` on `base`.

    Raises Unprocessable when PEFT cannot, or the two do not read texts alike; Internal; what the model service answers.
    """
    found = await ask_peft(Task(base=base, adapter=folder, texts=list(texts)), nest)
    prompts, answers = [one.prompt for one in found], [texts[one.index].answer for one in found]
    if not found:
        raise Unprocessable(f"{base} tokenises none of {len(texts)} texts to anything that could be compared")
    bare, adapted = await asyncio.gather(
        served.score(model, "", prompts, answers), served.score(model, adapter, prompts, answers)
    )
    probes = [
        _probe(one, bare.logprobs[at], adapted.logprobs[at])
        for at, one in enumerate(found)
        if bare.tokens[at] == one.tokens == adapted.tokens[at]
    ]
    if 2 * len(probes) < len(found):
        raise Unprocessable(
            f"{model} and its base {base} read texts differently: of {len(found)} texts only {len(probes)} have as many"
            " tokens in both, so the model served is not the one trained on",
            model=model,
        )
    return compare(probes, quantised=quantised)


def _probe(one: Scored, bare: float, adapted: float) -> Probe:
    return Probe(tokens=one.tokens, peft_bare=one.bare, peft=one.adapted, served_bare=bare, served=adapted)


def _characters(row: RowInfo) -> int:
    return len(row.answer) + len(row.prompt or "") + sum(len(message.content) for message in row.messages)


def _text(row: RowInfo) -> Text:
    messages = [{"role": message.role, "content": message.content} for message in row.messages]
    return Text(answer=row.answer, prompt=row.prompt or "", messages=messages)
