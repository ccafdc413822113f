"""Exported models answer in llama.cpp as they do in transformers: small networks with random weights, made here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bus.settings import child_environment
from schemas.errors import BusError, Unprocessable, Unsupported
from workers.models.catalogue import SHIPPED_ROOT
from workers.models.convert import export as export_module
from workers.models.convert.export import export
from workers.models.convert.quantise import quantise

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
pytest.importorskip("gguf", reason="gguf is not installed")
torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

DEMO_HF = SHIPPED_ROOT / "hf"
SIZES = {
    "vocab_size": 1536, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
}  # fmt: skip
# Ids of the demo's vocabulary, long enough for rotary angles to matter.
PROMPT = [7, 300, 21, 900, 42, 1300, 77, 5, 611, 18, 333, 1204, 90, 64, 8, 250]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Other tests run beside this one, and the networks are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(folder: Path, kind: str, dtype: Any = None, **more: Any) -> Any:
    """A random model of `kind`, saved with the demo's tokenizer."""
    import transformers

    torch.manual_seed(5)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, "tie_word_embeddings": False, **more})
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Far from the defaults, so that a norm or bias that is left out shows.
            spread = 0.6 if parameter.ndim > 1 else 0.3
            parameter.normal_(1.0 if "norm" in name else 0.0, spread if parameter.ndim == 1 else spread / 3)
    model = model.to(dtype or torch.float32).eval()
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((DEMO_HF / name).read_bytes())
    return model


def exported(folder: Path, target: Path, type: str = "F32", adapter: Path | None = None) -> Path:
    steps: list[tuple[int, int]] = []
    export(folder, target, type, name="tiny", adapter=adapter, report=lambda done, total: steps.append((done, total)))
    assert steps[0][0] == 0
    assert steps[-1][0] == steps[-1][1] > 0
    return target


# llama.cpp in a process of its own, like everywhere: it keeps state that tests would share.
LOGITS = """
import json, sys
import numpy as np
from llama_cpp import Llama
tokens = json.loads(sys.argv[2])
llama = Llama(sys.argv[1], n_ctx=128, n_threads=1, logits_all=True, verbose=False, n_gpu_layers=0)
llama.eval(tokens)
np.save(sys.argv[3], np.array(llama.scores[:len(tokens)]))
texts = json.loads(sys.argv[4])
print(json.dumps([llama.tokenize(text.encode(), add_bos=False, special=True) for text in texts]))
llama.close()
"""


def in_llama_cpp(path: Path, tmp_path: Path, texts: Sequence[str] = ()) -> tuple[Any, list[list[int]]]:
    """Logits of PROMPT, and the tokens of `texts`."""
    import numpy as np

    out = tmp_path / "logits.npy"
    done = subprocess.run(
        [sys.executable, "-c", LOGITS, str(path), json.dumps(PROMPT), str(out), json.dumps(texts)],
        check=False,
        capture_output=True,
        timeout=50,
        env=child_environment(None, {}),
    )
    assert done.returncode == 0, done.stderr.decode()
    return np.load(out), json.loads(done.stdout)


def in_transformers(model: Any) -> Any:
    with torch.no_grad():
        return model(torch.tensor([PROMPT])).logits[0].float().numpy()


def agree(here: Any, there: Any, tolerance: float) -> None:
    """Close logits everywhere, and the same greedy token. llama.cpp keeps keys and values as float16."""
    assert abs(here - there).max() < tolerance * abs(there).max()
    assert (here.argmax(-1) == there.argmax(-1)).mean() > 0.8


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("Llama", {}),
        ("Llama", {"rope_parameters": {
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }}),
        ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
        ("Qwen2", {"rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64,
        }}),
        ("Llama", {"tie_word_embeddings": True, "attention_bias": True}),
        ("Mistral", {"sliding_window": None}),
        ("Qwen2", {}),
        ("Qwen3", {}),
    ],
)  # fmt: skip
def test_an_exported_network_computes_what_it_did(tmp_path: Path, kind: str, more: dict[str, Any]) -> None:
    """Rotary order, biases, norms and scaling are where llama.cpp looks for them."""
    model = make(tmp_path / "hf", kind, **more)
    here, _ = in_llama_cpp(exported(tmp_path / "hf", tmp_path / "out.gguf"), tmp_path)
    agree(here, in_transformers(model), 5e-3)


@pytest.mark.parametrize(("type", "tolerance"), [("F16", 1e-2), ("BF16", 3e-2)])
def test_narrower_types_are_close(tmp_path: Path, type: str, tolerance: float) -> None:
    """A model stored in bfloat16 is read right, and rounding is all that is lost."""
    model = make(tmp_path / "hf", "Llama", torch.bfloat16).float()
    path = exported(tmp_path / "hf", tmp_path / "out.gguf", type)
    here, _ = in_llama_cpp(path, tmp_path)
    agree(here, in_transformers(model), tolerance)


def test_eight_bits_are_what_llama_cpp_makes_of_them(tmp_path: Path) -> None:
    """Exported as Q8_0, or as F32 and then quantised by llama.cpp: byte for byte the same weights."""
    import gguf
    import numpy as np

    exported(DEMO_HF, tmp_path / "ours.gguf", "Q8_0")
    exported(DEMO_HF, tmp_path / "f32.gguf", "F32")
    quantise(tmp_path / "f32.gguf", tmp_path / "theirs.gguf", "Q8_0", threads=1, report=lambda done, total: None)
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "theirs.gguf").tensors}
    ours = gguf.GGUFReader(tmp_path / "ours.gguf").tensors
    assert {tensor.name for tensor in ours} == set(theirs)
    for tensor in ours:
        assert tensor.tensor_type == theirs[tensor.name].tensor_type
        assert np.array_equal(tensor.data, theirs[tensor.name].data), tensor.name


def test_the_demo_model_is_exported_as_it_was_shipped(tmp_path: Path) -> None:
    """Weights, vocabulary and special tokens are those of the file made with the model."""
    import gguf
    import numpy as np

    ours = gguf.GGUFReader(exported(DEMO_HF, tmp_path / "out.gguf", "F16"))
    theirs = gguf.GGUFReader(SHIPPED_ROOT / "olympus-demo.gguf")
    weights = {tensor.name: tensor.data for tensor in theirs.tensors}
    assert {tensor.name for tensor in ours.tensors} == set(weights)
    for tensor in ours.tensors:
        assert np.array_equal(tensor.data, weights[tensor.name]), tensor.name
    for key in theirs.fields:
        if key.startswith(("tokenizer.", "llama.")):
            assert ours.fields[key].contents() == theirs.fields[key].contents(), key


def test_an_adapter_is_merged(tmp_path: Path) -> None:
    """The export computes what transformers and PEFT compute together."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = make(tmp_path / "hf", "Llama")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "down_proj"], use_rslora=True)
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.2)
    adapted.save_pretrained(tmp_path / "lora")
    expected = in_transformers(adapted.eval())
    path = exported(tmp_path / "hf", tmp_path / "out.gguf", adapter=tmp_path / "lora")
    here, _ = in_llama_cpp(path, tmp_path)
    agree(here, expected, 5e-3)
    plain, _ = in_llama_cpp(exported(tmp_path / "hf", tmp_path / "plain.gguf"), tmp_path)
    assert abs(here - plain).max() > 0.1


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    """A delta that fits no weight is told, not left out."""
    from safetensors.torch import save_file

    make(tmp_path / "hf", "Llama")
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    layer = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    for number, width, why in ((9, 64, "changes"), (0, 32, "another model")):
        tensors = {layer.format(number, "A"): torch.zeros(2, width), layer.format(number, "B"): torch.zeros(64, 2)}
        save_file(tensors, lora / "adapter_model.safetensors")
        with pytest.raises(Unprocessable, match=why):
            exported(tmp_path / "hf", tmp_path / "out.gguf", adapter=lora)
    (lora / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "use_dora": True}))
    with pytest.raises(Unsupported, match="use_dora"):
        exported(tmp_path / "hf", tmp_path / "out.gguf", adapter=lora)


SENTENCES = [
    "The quick brown fox jumps over 13 lazy dogs.", "  two spaces,\n\na line and\ttab", "naïve café, Straße, 日本語 🙂",
    "it's what they've said: 3.14159",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["llama3", "qwen2", "gpt-2", "sentencepiece"])
def test_an_exported_tokenizer_splits_as_it_did(tmp_path: Path, kind: str) -> None:
    """The same ids for the same text, in every kind of tokenizer that is taken."""
    from tokenizers import Tokenizer

    make(tmp_path / "hf", "Llama")
    tokenizer: Tokenizer = make_tokenizer(kind)
    tokenizer.save(str(tmp_path / "hf" / "tokenizer.json"))
    (tmp_path / "hf" / "tokenizer_config.json").write_text("{}")
    path = exported(tmp_path / "hf", tmp_path / "out.gguf", "F16")
    _, ids = in_llama_cpp(path, tmp_path, SENTENCES)
    assert ids == [tokenizer.encode(text, add_special_tokens=False).ids for text in SENTENCES]


def make_tokenizer(kind: str) -> Any:
    """A tokenizer with the rules of a published family, its merges learned from the text of this project."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    from workers.models.convert import vocabulary
    from workers.models.convert.perplexity import TEXT

    text = TEXT.read_text(encoding="utf-8").split("\n")
    if kind == "sentencepiece":
        pieces = [f"<0x{byte:02X}>" for byte in range(256)]
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.ByteFallback()
        trainer = trainers.BpeTrainer(
            vocab_size=1200, special_tokens=["<unk>", "<s>", "</s>", *pieces], show_progress=False
        )
        tokenizer.train_from_iterator(text, trainer)
        # Byte pieces are ordinary entries of the vocabulary, not special ones.
        state = json.loads(tokenizer.to_str())
        state["added_tokens"] = [one for one in state["added_tokens"] if not one["content"].startswith("<0x")]
        return Tokenizer.from_str(json.dumps(state))
    tokenizer = Tokenizer(models.BPE())
    patterns = {"llama3": vocabulary.LLAMA3, "qwen2": vocabulary.QWEN2}
    if kind in patterns:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(patterns[kind]), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1200, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    return tokenizer


def refused(folder: Path, kind: type[BusError], why: str, **config: Any) -> None:
    """The folder with its configuration changed cannot be exported, and says why."""
    path = folder / "config.json"
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), **config}))
    with pytest.raises(kind, match=why):
        exported(folder, folder / "out.gguf")
    path.write_text(before)


def test_sizes_that_lie_are_refused_before_anything_is_made_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vocabulary of two billion tokens would be a list of as many, and the end of whatever else runs here."""
    make(tmp_path / "m", "Llama")

    def refuse(*arguments: object) -> None:
        raise AssertionError("a list of all tokens was made")

    monkeypatch.setattr(export_module, "_vocabulary", refuse)
    refused(tmp_path / "m", Unprocessable, r"config\.json says \(2000000000, 64\)", vocab_size=2_000_000_000)
    refused(tmp_path / "m", Unprocessable, "says 2000000000 layers", num_hidden_layers=2_000_000_000)


def test_what_cannot_be_exported_says_why(tmp_path: Path) -> None:
    """Another network, senseless sizes, missing tensors, unknown rules: an error with what is allowed, never a wrong file."""
    folder = tmp_path / "hf"
    make(folder, "Llama")
    refused(folder, Unsupported, "LlamaForCausalLM, MistralForCausalLM", architectures=["GPT2LMHeadModel"])
    refused(folder, Unsupported, "quantised already", quantization_config={"bits": 4})
    refused(folder, Unsupported, "dynamic", rope_scaling={"rope_type": "dynamic"}, rope_parameters=None)
    refused(folder, Unprocessable, "num_hidden_layers", num_hidden_layers=0)
    refused(folder, Unprocessable, "num_hidden_layers", num_hidden_layers="2")
    refused(folder, Unprocessable, "lacks 9 tensors", num_hidden_layers=3)
    refused(folder, Unprocessable, "config.json says", vocab_size=1537)
    refused(folder, Unprocessable, r"config\.json says \(100, 64\)", vocab_size=100)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for change, kind, why in (
        ({"pre_tokenizer": {"type": "Whitespace"}}, Unsupported, "rules"),
        ({"model": {"type": "Unigram"}}, Unsupported, "Unigram"),
        ({"model": {"type": "BPE", "vocab": {}}}, Unprocessable, "not as expected"),
        ({"model": {"type": "BPE", "vocab": {"a": "b"}, "merges": []}}, Unprocessable, "not as expected"),
    ):
        (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, **change}))
        refused(folder, kind, why)
    (folder / "tokenizer.json").write_text("[]")
    refused(folder, Unprocessable, "no JSON object")
    os.truncate(folder / "model.safetensors", 1000)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(folder, Unprocessable, r"model\.safetensors: ")
