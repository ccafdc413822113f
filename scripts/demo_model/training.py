"""The demo model's network and its training loop on one processor thread."""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from demo_model.shape import Shape
from demo_model.tasks import TaskSampler
from demo_model.tokens import END, PAD, SPECIALS, ChatEncoder

# How the steps are shared out among the rounds.
ROUND_PARTS = (3, 2, 3, 3)
# Added to the seed from round to round, so that no round sees the text of another.
ROUND_SEED_STEP = 1_000_003
# Steps whose chats are drawn and sorted by length together: more waste less on padding, fewer mix lengths better.
POOLED_STEPS = 20


@dataclass(frozen=True, slots=True)
class Round:
    """One round of training: how long, how fast and on what mixture; `tokens_per_step` counts padding too."""

    steps: int
    peak_lr: float
    # The learning rate falls to zero over this last part of the round; before that it stays at its peak.
    decay_share: float
    # Over this first part most chats only repeat a long text, see copying_share.
    copying_first: float = 0.0
    # How much more often the hard tasks come than in the plain mixture.
    hard_tasks: float = 1.0
    # Share of made-up words that begin with a listed word or, with token_starts, with a token of the vocabulary.
    compounds: float = 0.0
    token_starts: bool = False
    tokens_per_step: int = 2048
    warmup_share: float = 0.03


def rounds(steps: int) -> tuple[Round, ...]:
    """The shipped training, `steps` in all: copying and fixed answers, then the hard tasks, then twice the rare tokens.

    Copying appears (rather suddenly) near the end of the first round, when the learning rate falls; the later rounds
    build on it at lower rates.
    """
    first, second, third = (steps * part // sum(ROUND_PARTS) for part in ROUND_PARTS[:-1])
    last = steps - first - second - third
    return (
        Round(first, peak_lr=4e-3, decay_share=0.5, copying_first=0.12),
        Round(second, peak_lr=2.5e-3, decay_share=0.9, hard_tasks=1.8),
        Round(third, peak_lr=2.5e-3, decay_share=0.9, hard_tasks=1.8, compounds=0.35),
        Round(last, peak_lr=2e-3, decay_share=0.97, hard_tasks=1.5, compounds=0.4, token_starts=True),
    )


def build_model(shape: Shape, seed: int) -> LlamaForCausalLM:
    """A Llama network with random weights; the input and the output embedding are one matrix."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.width,
            intermediate_size=shape.feed_forward,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.width // shape.heads,
            max_position_embeddings=shape.context_tokens,
            rms_norm_eps=shape.norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": shape.rope_base},
            tie_word_embeddings=True,
            attention_bias=False,
            mlp_bias=False,
            bos_token_id=SPECIALS.index(END),
            eos_token_id=SPECIALS.index(END),
            pad_token_id=SPECIALS.index(PAD),
        )
    )


def copying_share(step: int, plan: Round) -> float:
    """Share of the chats at `step` that only repeat a long text: most at first, few later.

    Copying from the prompt is one skill behind half of the tasks, and the slowest to appear. Learned first, on its own,
    it is there when the tasks come.
    """
    return 0.7 if step < plan.copying_first * plan.steps else 0.04


def batches(encoder: ChatEncoder, shape: Shape, plan: Round, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (ids, weights) pairs, each (rows, tokens), int64 and float32; chats of like length share a batch."""
    rng = random.Random(f"training {seed}")
    starts = encoder.word_starts() if plan.token_starts else ()
    sampler = TaskSampler(rng, "train", plan.hard_tasks, plan.compounds, starts)
    step = 0
    while True:
        pool: list[tuple[list[int], list[float]]] = []
        while sum(len(ids) for ids, _ in pool) < POOLED_STEPS * plan.tokens_per_step:
            copying = rng.random() < copying_share(step, plan)
            make = sampler.long_repeat if copying else sampler.conversation
            pool.append(encoder.encode(make(encoder.length, shape.context_tokens)))
        pool.sort(key=lambda chat: len(chat[0]))
        groups: list[list[tuple[list[int], list[float]]]] = [[]]
        for chat in pool:
            if len(chat[0]) * (len(groups[-1]) + 1) > plan.tokens_per_step:
                groups.append([])
            groups[-1].append(chat)
        rng.shuffle(groups)
        for group in groups:
            longest = max(len(ids) for ids, _ in group)
            ids = torch.full((len(group), longest), SPECIALS.index(PAD))
            weights = torch.zeros((len(group), longest))
            for row, (chat_ids, chat_weights) in enumerate(group):
                ids[row, : len(chat_ids)] = torch.tensor(chat_ids)
                weights[row, : len(chat_ids)] = torch.tensor(chat_weights)
            step += 1
            yield ids, weights


def lr_share(step: int, plan: Round) -> float:
    """Share of the peak learning rate at `step`: linear warm-up, flat, then linear to zero."""
    warmup = max(1, math.ceil(plan.warmup_share * plan.steps))
    decay = max(1, math.ceil(plan.decay_share * plan.steps))
    return min((step + 1) / warmup, (plan.steps - step) / decay, 1.0)


def _optimizers(model: LlamaForCausalLM, plan: Round) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms.

    Muon orthogonalizes the momentum of each matrix (Jordan and others, 2024, https://kellerjordan.github.io/posts/muon);
    `match_rms_adamw` scales its update so that both optimizers share one learning rate (arXiv:2502.16982, section 2.2).
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=plan.peak_lr, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=plan.peak_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(
    tokenizer: Tokenizer, shape: Shape, plans: Sequence[Round], seed: int, say: Callable[[str], None] | None = None
) -> LlamaForCausalLM:
    """Trains a new model round by round and returns it in float32; progress goes to `say` (stderr by default)."""
    say = say or (lambda line: print(line, file=sys.stderr, flush=True))
    model = build_model(shape, seed)
    say(f"model: {model.num_parameters() / 1e6:.2f} M parameters, {torch.get_num_threads()} thread(s)")
    for number, plan in enumerate(plans):
        say(f"round {number + 1} of {len(plans)}")
        train_round(model, tokenizer, shape, plan, seed + number * ROUND_SEED_STEP, say)
    return model


def train_round(
    model: LlamaForCausalLM, tokenizer: Tokenizer, shape: Shape, plan: Round, seed: int, say: Callable[[str], None]
) -> None:
    """Trains the model in place for one round, with fresh optimizers."""
    optimizers = _optimizers(model, plan)
    stream = batches(ChatEncoder(tokenizer), shape, plan, seed)
    began_at, mean_loss = time.monotonic(), 0.0
    model.train()
    for step in range(plan.steps):
        lr = plan.peak_lr * lr_share(step, plan)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
        ids, weights = next(stream)
        # No attention mask: padding stands behind the last answer, where causal attention never looks.
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        counted = weights[:, 1:] > 0
        logits, wanted, share = model.lm_head(hidden[counted]), ids[:, 1:][counted], weights[:, 1:][counted]
        loss = (torch.nn.functional.cross_entropy(logits, wanted, reduction="none") * share).sum() / share.sum()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        mean_loss = loss.item() if step == 0 else 0.95 * mean_loss + 0.05 * loss.item()
        if step % 25 == 0 or step == plan.steps - 1:
            elapsed_s = time.monotonic() - began_at
            eta_s = elapsed_s / (step + 1) * (plan.steps - step - 1)
            say(f"step {step + 1}/{plan.steps}  loss {mean_loss:.4f}  lr {lr:.2e}  eta {eta_s:.0f} s")
    model.train(False)


@torch.no_grad()
def round_to_float16(model: LlamaForCausalLM) -> None:
    """Rounds every weight to the float16 number that the files will hold; the model goes on computing in float32."""
    for weight in model.parameters():
        weight.copy_(weight.to(torch.float16))
