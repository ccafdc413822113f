"""What PEFT computes for texts, with an adapter and without: a process of its own, for it imports torch.

    python -m workers.learning.promotion.reference --parent PID      a Task on stdin, an Answer on stdout, as JSON

A text is tokenised as `model.score` does it: the prompt with its control tokens, the text apart from it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from bus.parent import die_with_parent, take_stdout

# Of a text with its prompt; longer ones are left out. A few hundred tokens show as much, in a fraction of the time.
MAX_TOKENS: Final = 1_024

# Weights up to this size are computed with in float32, larger ones as they are kept: that takes twice their memory.
_FLOAT32_BYTES: Final = 4 * 1024**3


class Text(msgspec.Struct, frozen=True, kw_only=True):
    """A text to score after its prompt, or after a conversation (role and content of each message)."""

    answer: str
    prompt: str = ""
    messages: list[dict[str, str]] = []


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """base: folder of safetensors. adapter: PEFT folder."""

    base: str
    adapter: str
    texts: list[Text]


class Scored(msgspec.Struct, frozen=True, kw_only=True):
    """Sums of natural log-probabilities. prompt: what the text came after, as text. index: which text it was."""

    index: int
    prompt: str
    tokens: int
    bare: float
    adapted: float


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """error: why there are none, for a person."""

    scored: list[Scored] = []
    error: str = ""


def score(task: Task) -> list[Scored]:
    """The texts that can be scored: with a token, and not too long. Raises what transformers and peft raise."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = Path(task.base)
    size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    tokenizer: Any = AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    model: Any = AutoModelForCausalLM.from_pretrained(
        base,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=torch.float32 if size <= _FLOAT32_BYTES else "auto",
    )
    model = PeftModel.from_pretrained(model, task.adapter, is_trainable=False)
    model.eval()
    # A tokenizer that puts a begin of text before others does it for a prompt, too.
    begin = [token for token in tokenizer("a").input_ids[:1] if token == tokenizer.bos_token_id]

    def sum_of(before: list[int], tokens: list[int]) -> float:
        with torch.inference_mode():
            logits = model(torch.tensor([before + tokens])).logits[0, len(before) - 1 : -1]
        logprobs = torch.log_softmax(logits.float(), -1)
        return float(logprobs.gather(1, torch.tensor(tokens)[:, None]).sum())

    found = []
    for index, text in enumerate(task.texts):
        prompt = text.prompt
        if text.messages:
            prompt = tokenizer.apply_chat_template(text.messages, tokenize=False, add_generation_prompt=True)
        before = tokenizer(prompt, add_special_tokens=False).input_ids
        if before[:1] != begin:
            before = begin + before
        tokens = tokenizer(text.answer, add_special_tokens=False).input_ids
        if not before:
            before, tokens = tokens[:1], tokens[1:]
        if not tokens or len(before) + len(tokens) > MAX_TOKENS:
            continue
        adapted = sum_of(before, tokens)
        with model.disable_adapter():
            bare = sum_of(before, tokens)
        found.append(Scored(index=index, prompt=prompt, tokens=len(tokens), bare=bare, adapted=adapted))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Answer one task in a process that was started for it."""
    parser = argparse.ArgumentParser(prog="python -m workers.learning.promotion.reference", description=__doc__)
    parser.add_argument("--parent", type=int, required=True, help="process id of the learning service")
    die_with_parent(parser.parse_args(argv).parent)
    answer(take_stdout())


def answer(pipe: BinaryIO) -> None:
    """Answer the task on stdin into `pipe`."""
    task = msgspec.json.decode(os.fdopen(os.dup(0), "rb").read(), type=Task)
    try:
        found = Answer(scored=score(task))
    except ImportError as error:
        found = Answer(error=f"{error}; install the extra 'learning'")
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        # What transformers and peft raise for folders that do not belong together; shapes come as RuntimeError.
        found = Answer(error=f"{type(error).__name__}: {error}")
    pipe.write(msgspec.json.encode(found) + b"\n")


if __name__ == "__main__":
    main()
