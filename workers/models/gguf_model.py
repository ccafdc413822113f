"""Describes a GGUF model, split or not, from the headers of its files."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from workers.models.described import Described
from workers.models.facts import Facts
from workers.models.found import Found
from workers.models.gguf_header import MAX_ELEMENTS, GgufHeader, UnusableFile, read_header

# Kinds of GGUF that other models are used with, and that nobody loads as a model (`general.type`).
_OTHER_KINDS: Final = ("adapter", "mmproj")

# The architecture of files that hold the image encoder of another model.
_IMAGE_ENCODER: Final = "clip"

# Architectures (llama.cpp, llama-arch.cpp) that read a text as a whole and never continue it.
_ENCODERS: Final = frozenset(
    "bert modern-bert nomic-bert nomic-bert-moe neo-bert jina-bert-v2 jina-bert-v3 eurobert gemma-embedding t5encoder".split()
)

# Architectures all of whose layers keep a state of fixed size. Hybrids say so by key/value heads that are 0 in places.
_RECURRENT: Final = ("mamba", "rwkv", "arwkv")

# Pooling types of llama.h: 0 is none, 1 to 4 make one vector of a text.
_POOLING: Final = range(1, 5)


def describe_gguf(found: Found) -> Described | None:
    """What the files say; None for what is no model of its own: adapters and image encoders.

    Blocks on the disk. Raises UnusableFile, and OSError when a file cannot be read.
    """
    if found.missing:
        count = len(found.missing) + len(found.files)
        raise UnusableFile(f"{len(found.missing)} of its {count} parts are missing, the first is {found.missing[0]}")
    header = read_header(found.path)
    kind = header.text("general.type", "model")
    if kind in _OTHER_KINDS or header.architecture == _IMAGE_ENCODER:
        return None
    if kind != "model":
        raise UnusableFile(f"holds a {kind[:40]}, not a model")
    _check_count(header, found)
    later = [_later_part(file.path) for file in found.files[1:]]
    parameters = header.parameters + sum(part.parameters for part in later)
    if parameters > MAX_ELEMENTS:
        raise UnusableFile(f"claims {parameters} elements, the limit is {MAX_ELEMENTS}")
    weights_bytes = found.size_bytes - header.data_offset - sum(part.data_offset for part in later)
    facts = facts_of(header, max(weights_bytes, 0), parameters)
    return Described(
        family=header.architecture[:128],
        quantisation=header.quantisation,
        parameters=parameters,
        context_tokens=header.context_tokens,
        facts=facts,
        description=header.text("general.description")[:4096],
        license=header.text("general.license")[:128],
        chat_template=header.text("tokenizer.chat_template") or None,
        is_embedding=_is_embedding(header),
    )


def _check_count(header: GgufHeader, found: Found) -> None:
    number, count = header.whole("split.no"), header.whole("split.count")
    if number > 0 or max(count, 1) != len(found.files):
        raise UnusableFile(
            f"is part {number + 1} of {max(count, 1)} of a split model, and its file name says part 1 of"
            f" {len(found.files)}: the parts keep their names NAME-00001-of-{max(count, 1):05}.gguf"
        )


def _later_part(path: Path) -> GgufHeader:
    try:
        return read_header(path, is_later_part=True)
    except UnusableFile as error:
        raise UnusableFile(f"{path.name}: {error}") from error


def _is_embedding(header: GgufHeader) -> bool:
    architecture = header.architecture
    return architecture in _ENCODERS or header.whole(f"{architecture}.pooling_type") in _POOLING


def facts_of(header: GgufHeader, weights_bytes: int, parameters: int) -> Facts:
    """Size and shape by the keys of the GGUF specification (ggml `docs/gguf.md`, "LLM"), with llama.cpp's defaults."""
    architecture = header.architecture

    def whole(key: str) -> int:
        return header.whole(f"{architecture}.{key}", 2**31) or _largest(header, f"{architecture}.{key}")

    layers, embedding = min(whole("block_count"), 2**16), whole("embedding_length")
    heads = whole("attention.head_count")
    head_dim = embedding // heads if heads else 0
    kv_heads, is_hybrid = _kv_heads(header, f"{architecture}.attention.head_count_kv", heads)
    window = whole("attention.sliding_window")
    facts = Facts(
        weights_bytes=weights_bytes,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim_k=whole("attention.key_length") or head_dim,
        head_dim_v=whole("attention.value_length") or head_dim,
        embedding=embedding,
        feed_forward=whole("expert_feed_forward_length") or whole("feed_forward_length"),
        vocabulary=whole("vocab_size") or header.lengths.get("tokenizer.ggml.tokens", 0),
        context_tokens=header.context_tokens,
        parameters=parameters,
        sliding_window=window or None,
        sliding_layers=_sliding_layers(header, layers) if window else 0,
        recurrent=is_hybrid or whole("ssm.state_size") > 0,
    )
    if architecture.startswith(_RECURRENT):
        return msgspec.structs.replace(facts, kv_heads=0, recurrent=True)
    return facts


def _largest(header: GgufHeader, key: str) -> int:
    """Of a value that is given for each layer, the largest; 0 where it is not."""
    return int(max((value for value in header.numbers.get(key, ()) if 0 <= value < 2**31), default=0))


def _kv_heads(header: GgufHeader, key: str, heads: int) -> tuple[int, bool]:
    """Heads of a layer (the mean, rounded up, where layers differ), and whether there are layers without."""
    each = [int(value) for value in header.numbers.get(key, ()) if 0 <= value < 2**31]
    if each:
        return -(-sum(each) // len(each)), 0 in each
    if isinstance(header.number(key), int):
        return header.whole(key), False
    # Without the key every head has its own keys and values.
    return heads, False


def _sliding_layers(header: GgufHeader, layers: int) -> int:
    key = f"{header.architecture}.attention.sliding_window_pattern"
    # An array says for each layer whether it has a window.
    return min(sum(1 for value in header.numbers.get(key, ()) if value), layers)
