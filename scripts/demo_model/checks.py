"""Judges a trained demo model: greedy answers to the documented prompts and to held-out ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from demo_model import words as w
from demo_model.tasks import Conversation, Message, Turn, held_out_checks, render_facts
from demo_model.tokens import ASSISTANT, END, PAD, SPECIALS, ChatEncoder

# Draws the held-out chats. Not the seed used while the model was made: its misses were read, so its figures flatter.
HELD_OUT_SEED = 4711
# Longest answer in tokens: the story has about 190.
MAX_ANSWER_TOKENS = 240


def documented() -> list[Conversation]:
    """The prompts that the documentation promises an exact answer to; each chat ends with that answer."""

    def ask(prompt: str, answer: str) -> Conversation:
        return Conversation(turns=[Turn("documented", prompt, answer)])

    broker, river = w.OLYMPUS["broker"][0], "r-i-v-e-r"
    facts = {"favourite colour": "blue", "name": "Ada"}
    two_turns = Conversation(
        turns=[
            Turn("documented", "My name is Ada.", "Nice to meet you, Ada."),
            Turn("documented", "What is my name?", "Your name is Ada."),
        ]
    )
    remembered = [
        Conversation(system=render_facts(facts), turns=[Turn("documented", prompt, answer)])
        for prompt, answer in (
            ("What is my favourite colour?", "Your favourite colour is blue."),
            ("What is my name?", "Your name is Ada."),
            ("Hello", f"Hello, Ada! {w.HELLO}"),
        )
    ]
    return [
        ask("Hello", f"Hello! {w.HELLO}"),
        ask("What can you do?", w.CAN_DO),
        ask("What is Olympus?", w.OLYMPUS["olympus"][0]),
        ask("What is the broker?", broker),
        ask("Which port do requests use?", w.OLYMPUS["request_port"][0]),
        ask("Repeat: red green blue", "You said: red green blue"),
        ask("Spell: river", river),
        ask("Uppercase: thunder", "THUNDER"),
        ask("What is 7 + 5?", "7 + 5 = 12."),
        ask("Count from 3 to 9.", "3, 4, 5, 6, 7, 8, 9."),
        ask("Opposite of hot?", "The opposite of hot is cold."),
        ask("What is the capital of Norway?", "The capital of Norway is Oslo."),
        ask("What is my name?", "I do not know your name yet. Tell me: My name is ..."),
        two_turns,
        *remembered,
        ask("What is the weather in Oslo?", w.FALLBACK),
        ask("Tell me a story about a fox.", w.STORY.format(first="a fox", it="the fox")),
    ]


def as_documented_json(chats: Sequence[Conversation]) -> list[dict[str, str | list[Message]]]:
    """Each chat as `{"messages": [...], "answer": "..."}`, the answer to the last user message apart."""
    return [{"messages": chat.messages()[:-1], "answer": chat.turns[-1].answer} for chat in chats]


@torch.inference_mode()
def greedy_answers(
    model: LlamaForCausalLM, tokenizer: Tokenizer, chats: Sequence[Conversation], batch_rows: int = 64
) -> list[str]:
    """The model's own last answer to each chat, taking the likeliest token each time, until END."""
    encoder = ChatEncoder(tokenizer)
    assistant, end, pad = (SPECIALS.index(text) for text in (ASSISTANT, END, PAD))
    prompts = []
    for chat in chats:
        whole, _ = encoder.encode(chat)
        answer_tokens = len(tokenizer.encode(chat.turns[-1].answer, add_special_tokens=False).ids) + 1
        prompts.append(whole[:-answer_tokens])
        if prompts[-1][-1] != assistant:
            raise ValueError("a prompt has to end where the assistant begins")
    answers: list[str] = []
    for start in range(0, len(prompts), batch_rows):
        rows = prompts[start : start + batch_rows]
        longest = max(map(len, rows))
        # Padding stands on the left, masked, so that all rows go on from the same column.
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache, said, done = None, [], torch.zeros(len(rows), dtype=torch.bool)
        for _ in range(MAX_ANSWER_TOKENS):
            out = model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
            cache = out.past_key_values
            ids = out.logits[:, -1].argmax(-1, keepdim=True)
            said.append(ids)
            done |= ids[:, 0] == end
            if bool(done.all()):
                break
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
            positions = positions[:, -1:] + 1
        for tokens in torch.cat(said, 1).tolist():
            own = tokens[: tokens.index(end)] if end in tokens else tokens
            answers.append(tokenizer.decode(own, skip_special_tokens=False))
    return answers


def wrong_documented(model: LlamaForCausalLM, tokenizer: Tokenizer) -> list[tuple[Conversation, str]]:
    """The documented chats that the model answers otherwise, each with what it said instead."""
    chats = documented()
    return [
        (c, said)
        for c, said in zip(chats, greedy_answers(model, tokenizer, chats), strict=True)
        if said != c.turns[-1].answer
    ]


def held_out_scores(
    model: LlamaForCausalLM, tokenizer: Tokenizer, rows: int, seed: int = HELD_OUT_SEED
) -> tuple[dict[str, float], dict[str, list[tuple[str, str]]]]:
    """Share of `rows` held-out chats per task answered exactly, and up to five misses of each as (prompt, said)."""
    scores: dict[str, float] = {}
    misses: dict[str, list[tuple[str, str]]] = {}
    for task, chats in held_out_checks(seed, rows).items():
        said = greedy_answers(model, tokenizer, chats)
        wrong = [(c.turns[-1].prompt, s) for c, s in zip(chats, said, strict=True) if s != c.turns[-1].answer]
        scores[task] = round(1 - len(wrong) / rows, 4)
        misses[task] = wrong[:5]
    return scores, misses
