"""The shipped demo model: documented answers, the same tokens in both engines, and a script that can rebuild it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "workers" / "models" / "demo"
GGUF = DEMO / "olympus-demo.gguf"
HF = DEMO / "hf"
DOCUMENTED: list[dict[str, Any]] = json.loads((DEMO / "documented.json").read_text(encoding="utf-8"))

MAX_NEW_TOKENS = 240
# Largest difference of a logit between the engines. The weights are the same float16 numbers, but llama.cpp rounds the
# activations that meet them to float16 too (11 bits, one part in 2,000 for each factor); logits here reach about 30.
LOGIT_TOLERANCE = 0.1

TEXTS = (
    "Hello, world!",
    " leading and trailing ",
    "two  spaces   three\n\nlines\r\n\ttab",
    "It's we'll I'd they're O'Neil",
    "0 1 22 333 4096 3.14 1,000",
    "a1b22c333",
    "naïve café Straße ΑΘΗΝΑ Привет 日本語 العربية",
    "😀 👩‍🚀 e\u0301 \u00a0\u2003x",
    "memory.kv.get > olympus tap 'memory.>'",
    "<|user|>Hello<|end|><|assistant|>",
    "a<|end|>b <|end|> c<|pad|>",
    "<|nobody|>",
    "Known facts about the user:\n- favourite colour: blue\n- name: Ada",
    "\n",
    " ",
    "",
    "...---!!! (x) [y] {z}",
    "٣ Ⅷ ½ x²",
)


def say_once(messages: list[dict[str, str]]) -> str:
    """The rendered prompt of a chat, up to where the assistant begins."""
    jinja2 = pytest.importorskip("jinja2")
    template = json.loads((HF / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    text = jinja2.Template(template).render(messages=messages, add_generation_prompt=True)
    assert isinstance(text, str)
    return text


def random_chats(count: int) -> list[list[dict[str, str]]]:
    """Chats nobody trained on, some of them nonsense: the engines have to agree there as well."""
    rng = random.Random(7)
    words = (
        "tell me the river of Quibble 17 colour, why does Olympus sing? repeat: spell add hot not story my name".split()
    )
    return [
        [{"role": "user", "content": " ".join(rng.choice(words) for _ in range(rng.randint(1, 9)))}]
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def llama() -> Any:
    """The GGUF file in llama.cpp: float32 cache, plain attention and one thread, as close to the reference as it gets."""
    llama_cpp = pytest.importorskip("llama_cpp")
    return llama_cpp.Llama(
        str(GGUF),
        n_ctx=512,
        n_batch=512,
        n_threads=1,
        n_threads_batch=1,
        n_gpu_layers=0,
        verbose=False,
        seed=0,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        flash_attn=False,
        logits_all=True,
    )


@pytest.fixture(scope="module")
def reference() -> Any:
    """The Hugging Face folder in transformers, computed in float32."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    return transformers.AutoModelForCausalLM.from_pretrained(HF, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The tokenizer of the Hugging Face folder."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(HF)


def test_shipped_files_stay_small() -> None:
    """Both weight files stay below 7 MB, so that a clone stays quick."""
    for path in (GGUF, HF / "model.safetensors"):
        assert path.stat().st_size < 7_000_000, path.name


@pytest.mark.parametrize("example", DOCUMENTED, ids=lambda example: example["messages"][-1]["content"][:40])
def test_documented_prompt_gives_its_documented_answer(llama: Any, example: dict[str, Any]) -> None:
    """llama.cpp, greedy and through the file's own chat template, says exactly what the documentation promises."""
    reply = llama.create_chat_completion(example["messages"], temperature=0.0, max_tokens=MAX_NEW_TOKENS)

    assert reply["choices"][0]["message"]["content"] == example["answer"]
    assert reply["choices"][0]["finish_reason"] == "stop"


def test_documentation_shows_every_documented_answer() -> None:
    """The page about the demo model holds each promised prompt and its answer, word for word."""
    page = (ROOT / "docs" / "demo-model.md").read_text(encoding="utf-8")

    for example in DOCUMENTED:
        assert f"user    {example['messages'][-1]['content']}\nmodel   {example['answer']}\n" in page


def test_text_is_tokenized_alike_by_llama_cpp_and_the_tokenizer_file(llama: Any, tokenizer: Any) -> None:
    """Spaces, digits, newlines, other scripts, emoji and special tokens give the same ids in both."""
    rng = random.Random(3)
    alphabet = "aZ9 ,.'\n\t-é日😀 \u00a0|<>_½"
    texts = [*TEXTS, *("".join(rng.choice(alphabet) for _ in range(rng.randint(1, 30))) for _ in range(300))]

    for text in texts:
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert llama.tokenize(text.encode(), add_bos=False, special=True) == expected, repr(text)


def test_chat_template_renders_alike_for_transformers_and_llama_cpp(llama: Any, tokenizer: Any) -> None:
    """System prompt, several turns and the generation prompt come out as the same text from each renderer."""
    messages = [
        {"role": "system", "content": "Known facts about the user:\n- name: Ada"},
        {"role": "user", "content": "  Hello\n"},
        {"role": "assistant", "content": "Hello, Ada!"},
        {"role": "user", "content": "What is my name?"},
    ]

    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    assert text == say_once(messages)
    assert llama.metadata["tokenizer.chat_template"] == tokenizer.chat_template
    assert text.endswith("<|user|>What is my name?<|end|><|assistant|>")


def test_greedy_tokens_and_logits_match_transformers(llama: Any, reference: Any, tokenizer: Any) -> None:
    """Token for token both engines choose alike, and each logit on the way differs by less than LOGIT_TOLERANCE."""
    np = pytest.importorskip("numpy")
    torch = pytest.importorskip("torch")
    chats = [example["messages"] for example in DOCUMENTED] + random_chats(20)
    end = tokenizer.eos_token_id

    for messages in chats:
        prompt = tokenizer(say_once(messages), add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            whole = reference.generate(
                prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=MAX_NEW_TOKENS
            )
            expected_logits = reference(whole).logits[0].numpy()
        expected = whole[0, prompt.shape[1] :].tolist()

        said: list[int] = []
        for token in llama.generate(prompt[0].tolist(), temp=0.0, repeat_penalty=1.0, reset=True):
            said.append(token)
            if token == end or len(said) == MAX_NEW_TOKENS:
                break
        llama.reset()
        llama.eval(whole[0].tolist())
        logits = np.array(llama.scores[: whole.shape[1]])

        assert np.abs(logits - expected_logits).max() < LOGIT_TOLERANCE, messages[-1]
        assert said == expected, (messages[-1], tokenizer.decode(said), tokenizer.decode(expected))


def test_script_trains_and_writes_files_that_both_engines_load(tmp_path: Path) -> None:
    """A few steps of training give a GGUF file and a Hugging Face folder of full size that load and agree on a logit."""
    llama_cpp = pytest.importorskip("llama_cpp")
    np = pytest.importorskip("numpy")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    script = [sys.executable, str(ROOT / "scripts" / "make_demo_model.py")]

    done = subprocess.run(
        [*script, "--out", str(tmp_path), "--steps", "11", "--rows", "0", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 11
    assert "round 4 of 4" in done.stderr
    ids = [3, 10, 20, 30]
    llama = llama_cpp.Llama(str(tmp_path / "olympus-demo.gguf"), n_ctx=64, logits_all=True, verbose=False, n_threads=1)
    llama.eval(ids)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(np.array(llama.scores[: len(ids)]) - expected).max() < LOGIT_TOLERANCE
