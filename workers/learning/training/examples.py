"""Reads the rows of a training and makes token ids of them; heavy only by the tokenizer it is given.

A conversation is written out by the base's own chat template, once up to the place of the answer and once with it; a
prompt stands as it is, and its answer ends with the end token. Only the answer's tokens count for the loss. Rows that
cannot be trained on are left out, counted and told of; lines that are no rows at all end the training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from schemas.errors import Unprocessable
from workers.learning.training.spec import Example, Method, TrainSpec


class Tokens(NamedTuple):
    """One row: token ids of what is given, of the answer, and for DPO of the worse answer."""

    prompt: list[int]
    answer: list[int]
    rejected: list[int]

    @property
    def length(self) -> int:
        """Of the longest sequence made of it."""
        return len(self.prompt) + max(len(self.answer), len(self.rejected))


class Rows(NamedTuple):
    """What is trained on, what is set aside to see when to stop, and sentences on what was left out."""

    method: Method
    train: list[Tokens]
    evaluation: list[Tokens]
    left_out: tuple[str, ...]


def read_rows(folder: Path, spec: TrainSpec, tokenizer: Any, max_length: int) -> Rows:
    """Tokens of all rows of the spec. Raises Unprocessable saying which line of which file is wrong, and OSError."""
    examples = [example for name in spec.rows for example in _lines(folder / name)]
    if not examples:
        raise Unprocessable(f"there are no rows to train on in {', '.join(spec.rows)}")
    method = _method(spec, examples)
    told = _LeftOut(len(examples))
    if method == "sft" and (preferences := sum(example.rejected is not None for example in examples)):
        told.say(f"{preferences} of {len(examples)} rows have a rejected answer, which SFT does not use")
    spelled = [_spelled(example, method, told) for example in examples]
    kept = [example for example in spelled if example is not None]
    tokens = [(_digest(example, spec.seed), _tokens(example, method, tokenizer, told)) for example in kept]
    fitting = [(digest, row) for digest, row in tokens if _fits(row, max_length, told)]
    sentences = told.sentences(max_length)
    if not fitting:
        raise Unprocessable(f"no row is left to train on: {'; '.join(sentences)}")
    train, evaluation = _set_aside(fitting, spec)
    return Rows(method, train, evaluation, sentences)


class _LeftOut:
    """Counts rows by what is wrong with them."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._said: list[str] = []
        self.empty = 0
        self.same = 0
        self.too_long = 0
        self.unprefixed = 0

    def say(self, sentence: str) -> None:
        self._said.append(sentence)

    def sentences(self, max_length: int) -> tuple[str, ...]:
        of = f"of {self._rows} rows"
        counted = (
            (self.empty, f"{of} have an empty answer and were left out"),
            (self.same, f"{of} have a rejected answer that is the same as the answer, and were left out"),
            (self.too_long, f"{of} are longer than {max_length} tokens and were left out"),
            (self.unprefixed, f"{of} are written by the chat template in another way once they are answered"),
        )
        return (*self._said, *(f"{count} {words}" for count, words in counted if count))


def _lines(path: Path) -> Iterator[Example]:
    decoder = msgspec.json.Decoder(Example)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        yield decoder.decode(line)
                    except (msgspec.DecodeError, UnicodeDecodeError) as error:
                        raise Unprocessable(f"{path.name}, line {number}: {error}") from error
    except OSError as error:
        raise Unprocessable(f"{path} cannot be read: {error.strerror or error}") from error


def _method(spec: TrainSpec, examples: Sequence[Example]) -> Method:
    lacking = sum(example.rejected is None for example in examples)
    if spec.method == "dpo" and lacking:
        raise Unprocessable(f"{lacking} of {len(examples)} rows have no rejected answer, which DPO needs of every row")
    if spec.method == "auto":
        return "sft" if lacking else "dpo"
    return spec.method


def _spelled(example: Example, method: Method, told: _LeftOut) -> Example | None:
    if not example.answer.strip() or (method == "dpo" and not (example.rejected or "").strip()):
        told.empty += 1
        return None
    if method == "dpo" and example.answer == example.rejected:
        told.same += 1
        return None
    return example


def _tokens(example: Example, method: Method, tokenizer: Any, told: _LeftOut) -> Tokens:
    given = _given(example, tokenizer)
    wholes = [_answered(example, example.answer, tokenizer)]
    if method == "dpo" and example.rejected is not None:
        wholes.append(_answered(example, example.rejected, tokenizer))
    # Tokens may merge over the border, and some templates write the same words differently once they are answered: the
    # answer then begins where the two part.
    shared = min(_common(given, whole) for whole in wholes)
    told.unprefixed += example.messages is not None and shared < len(given)
    parts = [whole[shared:] for whole in wholes]
    return Tokens(wholes[0][:shared], parts[0], parts[1] if len(parts) > 1 else [])


def _given(example: Example, tokenizer: Any) -> list[int]:
    if example.messages is None:
        return _ids(tokenizer(example.prompt))
    return _templated(tokenizer, _messages(example), add_generation_prompt=True)


def _answered(example: Example, answer: str, tokenizer: Any) -> list[int]:
    if example.messages is None:
        ids = _ids(tokenizer(f"{example.prompt}{answer}"))
        end = tokenizer.eos_token_id
        return ids if end is None or ids[-1:] == [end] else [*ids, end]
    return _templated(tokenizer, [*_messages(example), {"role": "assistant", "content": answer}])


def _messages(example: Example) -> list[dict[str, str]]:
    return [{"role": said.role, "content": said.content} for said in example.messages or ()]


def _templated(tokenizer: Any, messages: list[dict[str, str]], *, add_generation_prompt: bool = False) -> list[int]:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise Unprocessable("the base has no chat template, so rows of messages cannot be written out; give prompts")
    try:
        return _ids(
            tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, return_dict=True)
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise Unprocessable(f"the base's chat template refuses a row with the roles {roles}: {error}") from error


def _ids(encoded: Any) -> list[int]:
    return [int(token) for token in encoded["input_ids"]]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    for number, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return number
    return min(len(one), len(other))


def _fits(row: Tokens, max_length: int, told: _LeftOut) -> bool:
    if row.length > max_length:
        told.too_long += 1
        return False
    return True


def _digest(example: Example, seed: int) -> bytes:
    """Orders rows by what they say, whichever order they came in."""
    return hashlib.sha256(seed.to_bytes(8, "big") + msgspec.json.encode(example)).digest()


def _set_aside(rows: list[tuple[bytes, Tokens]], spec: TrainSpec) -> tuple[list[Tokens], list[Tokens]]:
    share = spec.stop.evaluation_share if spec.stop.patience else 0.0
    count = min(round(len(rows) * share), len(rows) - 1)
    if count < 1:
        return [row for _, row in rows], []
    border = sorted(digest for digest, _ in rows)[count - 1]
    evaluation = [row for digest, row in rows if digest <= border]
    train = [row for digest, row in rows if digest > border]
    # The same row written many times has one digest, and may be all there is.
    return (train, evaluation) if train else ([row for _, row in rows], [])
