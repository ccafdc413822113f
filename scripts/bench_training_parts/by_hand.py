"""A script somebody would write with TRL and PEFT, in a process that has everything imported: the yardstick of the bench.

Speaks the bench's line protocol: one JSON object per line in, one out.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

# Beside the trainer, which is as nice.
_NICENESS = 10


class _Clock(TrainerCallback):  # type: ignore[misc]
    """When the first step began."""

    began_at = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began_at = time.perf_counter()


def train(base: str, rows: str, options: dict[str, Any], threads: int) -> dict[str, float]:
    """Train and save an adapter; seconds from the first step to the saved adapter, and the last loss."""
    torch.set_num_threads(threads)
    with open(rows, encoding="utf-8") as file:
        examples = [json.loads(line) for line in file]
    dataset = Dataset.from_list(
        [
            {"prompt": example["messages"], "completion": [{"role": "assistant", "content": example["answer"]}]}
            for example in examples
        ]
    )
    folder = tempfile.mkdtemp(prefix="by-hand-")
    clock = _Clock()
    try:
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
            args=SFTConfig(output_dir=folder, **options),
            train_dataset=dataset,
            processing_class=AutoTokenizer.from_pretrained(base),
            peft_config=LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=32, target_modules="all-linear"),
            callbacks=[clock],
        )
        result = trainer.train()
        trainer.save_model(folder)
        return {"took_s": time.perf_counter() - clock.began_at, "loss": float(result.training_loss)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Obey until stdin ends."""
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.nice(_NICENESS)
    print(json.dumps({"ready": True}), file=pipe, flush=True)
    for line in sys.stdin:
        print(json.dumps(train(**json.loads(line))), file=pipe, flush=True)


if __name__ == "__main__":
    main()
