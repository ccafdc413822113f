"""Makes the demo model: writes its own text, trains a tiny Llama on it, checks it and exports it.

    python scripts/make_demo_model.py                        the shipped model, again, in place
    python scripts/make_demo_model.py --out DIR --steps 300  a weaker one, elsewhere
    python scripts/make_demo_model.py --json                 the figures as JSON on stdout

Exit codes: 0 written; 1 the model gives a documented prompt another answer, and nothing was written (see --force).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

SHIPPED = Path(__file__).resolve().parent.parent / "workers" / "models" / "demo"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SHIPPED, metavar="DIR", help="where to write (the shipped folder)")
    parser.add_argument("--steps", type=int, default=5500, metavar="N", help="training steps (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="fixes weights and text (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="processor threads (%(default)s)")
    parser.add_argument(
        "--rows", type=int, default=500, metavar="N", help="held-out chats per task; 0 skips every check (%(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="write even if a documented answer is wrong")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Trains, checks and exports; returns the exit code."""
    options = parse_arguments(arguments)
    # Imported late: --help should not wait two seconds for torch.
    import numpy as np
    import torch

    from demo_model import checks, export, shape, tokens, training

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    torch.set_num_threads(options.threads)
    sizes = shape.Shape()
    began_at = time.monotonic()
    tokenizer = tokens.train_tokenizer(sizes.vocab_size, options.seed)
    model = training.train(tokenizer, sizes, training.rounds(options.steps), options.seed, say)
    training.round_to_float16(model)
    figures: dict[str, Any] = {
        "parameters": model.num_parameters(),
        "steps": options.steps,
        "seed": options.seed,
        "training_minutes": round((time.monotonic() - began_at) / 60, 1),
    }

    if options.rows:
        say("checking documented and held-out prompts")
        wrong = checks.wrong_documented(model, tokenizer)
        scores, misses = checks.held_out_scores(model, tokenizer, options.rows)
        figures |= {"documented_wrong": len(wrong), "held_out_rows": options.rows, "held_out_exact": scores}
        for task, examples in misses.items():
            for prompt, said in examples:
                say(f"  missed {task}: {prompt!r} -> {said[:90]!r}")
        for chat, said in wrong:
            say(f"  wrong documented answer: {chat.turns[-1].prompt!r} -> {said[:90]!r}")
        if wrong and not options.force:
            say("nothing written: the model breaks a documented answer (train longer, or pass --force)")
            return 1

    weights = {
        name: value.numpy().astype(np.float16)
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"  # the same matrix as the embedding
    }
    export.export_hf(options.out / "hf", weights, sizes, tokenizer)
    export.export_gguf(options.out / f"{export.NAME}.gguf", weights, sizes, tokenizer)
    if options.rows:
        export.write_json(options.out / "documented.json", checks.as_documented_json(checks.documented()))
        export.write_json(options.out / "held_out.json", figures)
    if options.json:
        print(json.dumps(figures))
    else:
        for task, share in figures.get("held_out_exact", {}).items():
            print(f"{task:20} {share:7.1%}")
        print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
