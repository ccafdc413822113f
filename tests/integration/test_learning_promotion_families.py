"""Adapters of every architecture that a base can be exported for: llama.cpp with the converted one computes what PEFT does."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.learning_promotion import BASE
from workers.learning.promotion.equality import Probe, compare

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("peft", reason="peft is not installed")
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
pytest.importorskip("gguf", reason="gguf is not installed")

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
TEXTS = [("The name of the capital of", " a country is written on its maps."), ("One, two, three,", " four, five, six")]


def make_base(folder: Path, kind: str) -> Any:
    """A model of random numbers with the demo model's tokens, saved with its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    demo = json.loads((BASE / "config.json").read_text())
    tokens = {name: demo[name] for name in ("vocab_size", "bos_token_id", "eos_token_id")}
    sizes = {**SIZES, "sliding_window": None} if kind == "mistral" else SIZES
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **tokens), dtype=torch.float32)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0 if parameter.ndim > 1 else 1.0, 0.2 if parameter.ndim > 1 else 0.05)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BASE / name, folder / name)
    return model


def add_adapter(model: Any, folder: Path) -> Any:
    """PEFT's all-linear adapter with random numbers, saved."""
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.2)
    adapted.save_pretrained(str(folder))
    return adapted.eval()


def peft_score(model: Any, before: list[int], tokens: list[int]) -> float:
    with torch.inference_mode():
        logits = model(torch.tensor([before + tokens])).logits[0, len(before) - 1 : -1]
    return float(torch.log_softmax(logits, -1).gather(1, torch.tensor(tokens)[:, None]).sum())


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
async def test_the_converted_adapter_computes_what_peft_computes(tmp_path: Path, kind: str) -> None:
    """Every linear layer, grouped heads; and with the rows in another order it would be refused."""
    from workers.models.adapters.convert import convert
    from workers.models.backends import llama_cpp
    from workers.models.backends.backend import AdapterFile, LoadOptions
    from workers.models.convert.export import export

    base = tmp_path / "base"
    adapted = add_adapter(make_base(base, kind), tmp_path / "adapter")
    await asyncio.to_thread(
        export, base, tmp_path / "base.gguf", "F32", name="tiny", adapter=None, report=lambda done, total: None
    )
    converted = await asyncio.to_thread(convert, tmp_path / "adapter", tmp_path / "base.gguf", tmp_path / "a.gguf")
    options = LoadOptions(context_tokens=128, parallel=1, threads=1, gpu_layers=0)
    model = llama_cpp.load(tmp_path / "base.gguf", options)
    try:
        await model.set_adapters([AdapterFile(name="a", path=str(tmp_path / "a.gguf"), sha256=converted.sha256)])
        probes = []
        for prompt, answer in TEXTS:
            before = model.begin(model.tokenize(prompt, with_special=True))
            tokens = model.tokenize(answer, with_special=False)
            with adapted.disable_adapter():
                bare = peft_score(adapted, before, tokens)
            probes.append(
                Probe(
                    tokens=len(tokens),
                    peft_bare=bare,
                    peft=peft_score(adapted, before, tokens),
                    served_bare=sum(await model.score(before, tokens, None)),
                    served=sum(await model.score(before, tokens, converted.sha256)),
                )
            )
    finally:
        model.close()
    found = compare(probes, quantised=False)
    assert found.problem == ""
    assert found.change > 0.1
    assert found.difference < 0.01
