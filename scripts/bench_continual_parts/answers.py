"""Answers chats with a base and an adapter, many at once and always the likeliest token: a process of bench_continual.py.

Speaks the bench's line protocol: one JSON object per line in, one out. Knows no right answers.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

# Beside the trainer, which is as nice.
_NICENESS = 10

# Chats of one batch; more of them are no faster on two cores.
_BATCH = 64


def answer(base: str, adapter: str | None, chats: list[list[dict[str, str]]], most: int) -> list[str]:
    """One answer for each chat, of `most` tokens at most. Chats with answers of about one length are best neighbours."""
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    model.eval()
    said: list[str] = []
    for begin in range(0, len(chats), _BATCH):
        said += _batch(model, tokenizer, chats[begin : begin + _BATCH], most)
    return said


def _batch(model: Any, tokenizer: Any, chats: list[list[dict[str, str]]], most: int) -> list[str]:
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    asked = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    ids, mask = asked["input_ids"], asked["attention_mask"]
    with torch.inference_mode():
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=most, do_sample=False)
    return [text.strip() for text in tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)]


def main() -> None:
    """Obey until stdin ends."""
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.nice(_NICENESS)
    print(json.dumps({"ready": True}), file=pipe, flush=True)
    for line in sys.stdin:
        print(json.dumps({"said": answer(**json.loads(line))}), file=pipe, flush=True)


if __name__ == "__main__":
    main()
