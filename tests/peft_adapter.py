"""Makes LoRA adapters for the demo model as peft writes them: adapter_config.json and adapter_model.safetensors.

Random numbers of a seed, so that an adapter changes every answer, and each seed in another way.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from workers.models.backends.backend import AdapterFile

WIDTH = 192
LAYERS = 6
TARGET = "model.layers.{layer}.self_attn.q_proj"


def lora_weights(seed: int, rank: int) -> dict[str, Any]:
    """A (rank, d_in) and B (d_out, rank) of the q projection of each layer, under peft's names."""
    random = np.random.default_rng(seed)
    weights: dict[str, Any] = {}
    for layer in range(LAYERS):
        name = f"base_model.model.{TARGET.format(layer=layer)}"
        weights[f"{name}.lora_A.weight"] = random.normal(0, 0.3, (rank, WIDTH)).astype(np.float32)
        weights[f"{name}.lora_B.weight"] = random.normal(0, 0.3, (WIDTH, rank)).astype(np.float32)
    return weights


def write_adapter(folder: Path, name: str = "tone", *, seed: int = 1, rank: int = 8, **config: Any) -> AdapterFile:
    """An adapter in a new folder below `folder`; alpha is twice the rank, so that the scale of peft is 2."""
    from safetensors.numpy import save_file

    folder /= f"{name}-{seed}"
    folder.mkdir()
    told = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "olympus-demo",
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["q_proj"],
        "inference_mode": True,
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(told))
    weights = folder / "adapter_model.safetensors"
    save_file(lora_weights(seed, rank), weights)
    return AdapterFile(name=name, path=str(folder), sha256=hashlib.sha256(weights.read_bytes()).hexdigest())
