"""The estimate of a model's memory: by hand for known shapes, and against a process that loads and uses the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.sizes import MAX_BYTES
from workers.models.catalogue import SHIPPED_ROOT
from workers.models.estimate import estimate
from workers.models.facts import Facts
from workers.models.gguf_header import read_header
from workers.models.gguf_model import facts_of

ROOT = Path(__file__).resolve().parents[2]
MIB = 1024 * 1024
GIB = 1024 * MIB

# Shape of Llama 3 8B as its paper gives it (arXiv:2407.21783, table 3), at 4.5 bits a weight.
LLAMA_8B = Facts(
    weights_bytes=4_660_000_000,
    layers=32,
    heads=32,
    kv_heads=8,
    head_dim_k=128,
    head_dim_v=128,
    embedding=4096,
    feed_forward=14_336,
    vocabulary=128_256,
    context_tokens=8192,
    parameters=8_030_000_000,
)


def test_kv_cache_of_a_known_model_is_what_its_paper_says() -> None:
    """128 KiB for a token of Llama 3 8B: 1 GiB for a window of 8192, and as many as there are sequences."""
    assert estimate(LLAMA_8B, context_tokens=8192, parallel=1).kv_bytes == GIB
    assert estimate(LLAMA_8B, context_tokens=8192, parallel=4).kv_bytes == 4 * GIB
    # llama.cpp rounds up to 256 tokens.
    assert estimate(LLAMA_8B, context_tokens=8000, parallel=1).kv_bytes == GIB


def test_layers_are_divided_between_gpu_and_main_memory() -> None:
    """A quarter of the layers, a quarter of weights and cache; all of them leave only the table of embeddings."""
    whole = estimate(LLAMA_8B, context_tokens=8192, parallel=1, device="gpu0")
    part = estimate(LLAMA_8B, context_tokens=8192, parallel=1, device="gpu0", gpu_layers=8)
    none = estimate(LLAMA_8B, context_tokens=8192, parallel=1, device="gpu0", gpu_layers=0)

    assert whole.vram_bytes - part.vram_bytes == (LLAMA_8B.weights_bytes + GIB) * 3 // 4
    assert whole.ram_bytes < GIB < part.ram_bytes
    assert none.vram_bytes == 0
    assert none == estimate(LLAMA_8B, context_tokens=8192, parallel=1)


def test_types_that_a_cpu_copies_count_twice_there_and_once_on_a_gpu() -> None:
    """A model of Q4_K_M is in main memory as its file and as the copy the vector units want."""
    copied = estimate(LLAMA_8B, context_tokens=512, parallel=1, quantisation="Q4_K_M")
    plain = estimate(LLAMA_8B, context_tokens=512, parallel=1, quantisation="Q8_0")
    on_gpu = estimate(LLAMA_8B, context_tokens=512, parallel=1, quantisation="Q4_K_M", device="gpu0")

    assert copied.total_bytes - plain.total_bytes == LLAMA_8B.weights_bytes
    assert on_gpu.vram_bytes < plain.total_bytes + GIB


def test_windows_and_recurrent_layers_count_as_their_backends_keep_them() -> None:
    """transformers keeps only the window of a layer that has one, llama.cpp all; a recurrent state has no tokens."""
    windowed = msgspec.structs.replace(LLAMA_8B, sliding_window=1024, sliding_layers=16)
    recurrent = msgspec.structs.replace(LLAMA_8B, kv_heads=0, recurrent=True)

    assert estimate(windowed, context_tokens=8192, parallel=1).kv_bytes == GIB
    assert estimate(windowed, context_tokens=8192, parallel=1, backend="transformers").kv_bytes == GIB * 9 // 16
    short, long = (estimate(recurrent, context_tokens=tokens, parallel=2).kv_bytes for tokens in (512, 65_536))
    assert 0 < short == long


@pytest.mark.parametrize("backend", ["llama.cpp", "transformers"])
@pytest.mark.parametrize("device", ["cpu", "gpu0"])
def test_a_shape_that_makes_no_sense_still_has_a_size_that_can_be_told(backend: str, device: str) -> None:
    """A file may claim what it likes; a number too large for the wire would fail every list that shows it."""
    sizes = [name for name in Facts.__struct_fields__ if name not in ("recurrent", "sliding_window", "sliding_layers")]
    monster = Facts(recurrent=True, **dict.fromkeys(sizes, 2**63))
    size = estimate(
        monster, context_tokens=10_000_000, parallel=256, device=device, backend=backend, quantisation="Q4_0"
    )
    assert size.weights_bytes + size.kv_bytes + size.overhead_bytes == size.total_bytes
    assert size.total_bytes > 2**50 and max(size.vram_bytes, size.ram_bytes) <= MAX_BYTES


def test_a_remote_model_takes_nothing_here() -> None:
    """Its memory is another machine's."""
    assert estimate(LLAMA_8B, context_tokens=512, parallel=1, backend="openai").total_bytes == 0


def test_a_model_that_says_nothing_of_itself_still_takes_its_file_and_a_process() -> None:
    """Unknown shapes are zeros, never an error."""
    unknown = estimate(Facts(weights_bytes=GIB), context_tokens=4096, parallel=4, device="gpu1")
    assert unknown.vram_bytes > GIB and unknown.ram_bytes > 0


@given(
    context_tokens=st.integers(16, 2**20),
    parallel=st.integers(1, 64),
    gpu_layers=st.integers(-1, 40),
    device=st.sampled_from(["cpu", "gpu0"]),
    backend=st.sampled_from(["llama.cpp", "transformers", "vllm"]),
    quantisation=st.sampled_from(["", "Q4_0", "F16"]),
)
def test_parts_and_places_add_up_and_more_tokens_never_take_less(
    context_tokens: int, parallel: int, gpu_layers: int, device: str, backend: str, quantisation: str
) -> None:
    """For any request the sums agree, nothing is negative, and a longer window takes no less on any side."""

    def ask(tokens: int) -> tuple[int, int, int, int, int]:
        return msgspec.structs.astuple(
            estimate(
                LLAMA_8B,
                context_tokens=tokens,
                parallel=parallel,
                gpu_layers=gpu_layers,
                device=device,
                backend=backend,
                quantisation=quantisation,
            )
        )

    weights, kv, overhead, vram, ram = ask(context_tokens)
    assert weights + kv + overhead == vram + ram
    assert min(weights, kv, overhead, vram, ram) >= 0
    assert all(more >= less for more, less in zip(ask(context_tokens + 256), ask(context_tokens), strict=True))


# Against a process ----------------------------------------------------------------------------------------------------

# Loads a model as a runner does, answers with every sequence at once, and prints the most memory that was resident.
USER = """
import asyncio, sys
from pathlib import Path
from workers.models.backends.backend import LoadOptions, Options
from workers.models.backends.llama_cpp import load, prepare

async def main():
    path, tokens, parallel = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    prepare()
    model = load(path, LoadOptions(context_tokens=tokens, parallel=parallel, threads=1, gpu_layers=0))
    options = Options(max_tokens=2, temperature=0, top_k=40, top_p=1, min_p=0, repeat_penalty=1, seed=1)
    async def answer():
        async for _ in model.generate([300] * min(tokens // 2, 600), options):
            pass
    await asyncio.gather(*[answer() for _ in range(parallel)])
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]) * 1024)
    model.close()

asyncio.run(main())
"""


def peak_bytes(path: Path, context_tokens: int, parallel: int) -> int:
    """Most memory of a process that loads and uses the model."""
    command = [sys.executable, "-P", "-c", USER, str(path), str(context_tokens), str(parallel)]
    used = subprocess.run(
        command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=True
    )
    return int(used.stdout.split()[-1])


def write_model(path: Path) -> None:
    """A Llama of 57 M parameters in F16 whose weights are a hole in the file: zeros that cost no disk."""
    np = pytest.importorskip("numpy", reason="numpy is not installed")
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    embedding, layers, heads, kv_heads, feed_forward, vocabulary = 512, 12, 8, 4, 1536, 20_000
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(embedding)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("llama")
    control = [b"<unk>", b"<s>", b"</s>", *(f"<0x{byte:02X}>".encode() for byte in range(256))]
    writer.add_token_list([*control, *(f"token{number}".encode() for number in range(vocabulary - len(control)))])
    writer.add_token_scores([0.0] * vocabulary)
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (vocabulary - len(control))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    head_dim = embedding // heads
    shapes = {"token_embd": (vocabulary, embedding), "output": (vocabulary, embedding), "output_norm": (embedding,)}
    for layer in range(layers):
        block = {
            "attn_norm": (embedding,),
            "ffn_norm": (embedding,),
            "attn_q": (embedding, embedding),
            "attn_k": (kv_heads * head_dim, embedding),
            "attn_v": (kv_heads * head_dim, embedding),
            "attn_output": (embedding, embedding),
            "ffn_gate": (feed_forward, embedding),
            "ffn_up": (feed_forward, embedding),
            "ffn_down": (embedding, feed_forward),
        }
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    data_bytes = 0
    for name, shape in shapes.items():
        dtype = np.dtype(np.float32 if len(shape) == 1 else np.float16)
        tensor_bytes = int(np.prod(shape)) * dtype.itemsize
        writer.add_tensor_info(f"{name}.weight", shape, dtype, tensor_bytes)
        data_bytes += -(-tensor_bytes // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    (file,) = writer.fout
    file.truncate(-(-file.tell() // 32) * 32 + data_bytes)
    writer.close()


@pytest.mark.parametrize(
    ("name", "context_tokens", "parallel"), [("olympus-demo", 512, 4), ("generated", 512, 4), ("generated", 4096, 1)]
)
def test_the_estimate_is_close_to_what_a_process_uses(
    name: str, context_tokens: int, parallel: int, tmp_path: Path
) -> None:
    """Not more than 3 % below what a process took that loaded the model and used it, nor 10 % and 45 MiB above."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    path = SHIPPED_ROOT / "olympus-demo.gguf"
    if name == "generated":
        path = tmp_path / "generated.gguf"
        write_model(path)
    header = read_header(path)
    facts = facts_of(header, path.stat().st_size, header.parameters)

    told = estimate(facts, context_tokens=context_tokens, parallel=parallel).total_bytes
    used = peak_bytes(path, context_tokens, parallel)

    assert 0.97 * used < told < 1.1 * used + 45 * MIB, f"told {told / MIB:.0f} MiB, used {used / MIB:.0f}"
