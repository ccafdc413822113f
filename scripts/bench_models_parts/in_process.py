"""llama-cpp-python by hand, in a process of its own that has everything imported: the yardstick of the bench.

Speaks the bench's line protocol: one JSON object per line in, one out.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, Final

from llama_cpp import Llama

# Answers drawn for one that is long enough, at most; one in three ends early.
_DRAWN_MAX: Final = 50


def generate(model: Llama, prompt: str, tokens: int) -> dict[str, Any]:
    """Continue `prompt`; seconds to the first token and to the last, and how many there were."""
    started_at = time.perf_counter()
    first_s = 0.0
    count = 0
    # The plain generator, without the text handling of `create_completion`, which is slower still.
    ids = model.tokenize(prompt.encode())
    model.reset()  # type: ignore[no-untyped-call]
    for _ in model.generate(ids, temp=5.0, top_k=40, top_p=1.0, min_p=0.0, reset=True):
        first_s = first_s or time.perf_counter() - started_at
        count += 1
        if count == tokens:
            break
    return {"first_s": first_s, "took_s": time.perf_counter() - started_at, "tokens": count}


def complete(model: Llama, prompt: str, tokens: int, seed: int) -> dict[str, Any]:
    """The same with the package's streamed completion, which makes text as `model.generate` does.

    What ends by itself in the first half is drawn again: of few tokens no rate is told.
    """
    prompt_tokens = len(model.tokenize(prompt.encode()))
    for again in range(_DRAWN_MAX):
        started_at = time.perf_counter()
        first_s = 0.0
        pieces = model.create_completion(
            prompt, max_tokens=tokens, stream=True, seed=seed + again, temperature=5.0, top_k=40, top_p=1.0, min_p=0.0
        )
        for _ in pieces:
            first_s = first_s or time.perf_counter() - started_at
        took_s = time.perf_counter() - started_at
        # Pieces wait for whole characters, so the tokens are counted in the cache, which lacks the last of them.
        made = model.n_tokens - prompt_tokens + 1
        if made > tokens // 2:
            break
    return {"first_s": first_s, "took_s": took_s, "tokens": made}


def load(path: str, context_tokens: int, threads: int) -> Llama:
    """The model, as somebody would load it."""
    return Llama(path, n_ctx=context_tokens, n_threads=threads, n_threads_batch=threads, n_gpu_layers=0, verbose=False)


def main() -> None:
    """Obey until stdin ends."""
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    model: Llama | None = None
    print(json.dumps({"ready": True}), file=pipe, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        options = command["path"], command["context_tokens"], command["threads"]
        if command["do"] == "swap":
            # Loaded, asked and gone, timed from the wish to the first token.
            started_at = time.perf_counter()
            swapped = load(*options)
            loaded_s = time.perf_counter() - started_at
            answer = generate(swapped, command["prompt"], 1)
            answer |= {"first_s": time.perf_counter() - started_at, "load_s": loaded_s}
            swapped.close()
        else:
            if model is None:
                model = load(*options)
            if command["do"] == "complete":
                answer = complete(model, command["prompt"], command["tokens"], command["seed"])
            else:
                answer = generate(model, command["prompt"], command["tokens"])
        print(json.dumps(answer), file=pipe, flush=True)


if __name__ == "__main__":
    main()
