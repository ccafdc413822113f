"""Describes a folder of safetensors from its configuration and the headers of its files. No weights, no code, no pickles."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from workers.models.described import Described
from workers.models.facts import Facts
from workers.models.found import INDEX, Found
from workers.models.gguf_header import MAX_ELEMENTS, MAX_TENSORS, UnusableFile
from workers.models.safetensors_header import SafetensorsHeader, read_header

# Bytes that are read of a file at most. Indexes of the largest models have 9 MB for 90,000 tensors; configurations a few
# KB, with lists of layers or labels 200; those of tokenizers up to 2 MB, nearly all of which is passed over. Decoding
# takes up to 70 times the size of a hostile configuration in memory.
_MAX_INDEX_BYTES: Final = 32 * 1024 * 1024
_MAX_CONFIG_BYTES: Final = 512 * 1024
_MAX_TOKENIZER_BYTES: Final = 8 * 1024 * 1024

_SINGLE: Final = "model.safetensors"

# Any one of these is a tokenizer that transformers reads.
_TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")

# Endings of `architectures` that make vectors or classes of a text and never continue it.
_NOT_GENERATING: Final = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "EncoderModel")

# Kinds (`model_type`) with layers whose state does not grow with the text.
_RECURRENT: Final = ("mamba", "rwkv", "jamba", "bamba", "zamba", "falcon_h1", "granitemoehybrid", "qwen3_next", "lfm2")


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]


class _Tokenizer(msgspec.Struct, frozen=True):
    chat_template: msgspec.Raw = msgspec.Raw()


class _Named(msgspec.Struct, frozen=True):
    name: str = ""
    template: str = ""


_decode_tokenizer = msgspec.json.Decoder(_Tokenizer).decode
_decode_template = msgspec.json.Decoder(str | list[_Named] | None).decode
_decode_index = msgspec.json.Decoder(_Index).decode
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


def describe_safetensors(found: Found) -> Described:
    """What the folder says. Blocks on the disk. Raises UnusableFile, and OSError when a file cannot be read."""
    there = {file.path.name for file in found.files}
    config = _config(found, there)
    if not any(name in there for name in _TOKENIZERS):
        raise UnusableFile("holds no tokenizer (tokenizer.json or tokenizer.model)")
    headers = _weights(found, there)
    parameters = sum(header.parameters for header in headers)
    if parameters > MAX_ELEMENTS:
        raise UnusableFile(f"claims {parameters} elements, the limit is {MAX_ELEMENTS}")
    facts = facts_of(config, sum(header.data_bytes for header in headers), parameters)
    return Described(
        family=_text(config.get("model_type"))[:128],
        quantisation=_quantisation(config, headers),
        parameters=parameters,
        context_tokens=facts.context_tokens,
        facts=facts,
        chat_template=_template(found.path, there),
        is_embedding=_is_embedding(config, there),
        can_see="vision_config" in config,
    )


def _config(found: Found, there: set[str]) -> dict[str, Any]:
    if "config.json" not in there:
        raise UnusableFile("config.json is missing, so nothing can tell how to run it")
    config = _object(found.path / "config.json")
    if not _text(config.get("model_type")):
        raise UnusableFile("config.json names no model_type, so nothing can tell how to run it")
    return config


# Weights --------------------------------------------------------------------------------------------------------------


def _weights(found: Found, there: set[str]) -> list[SafetensorsHeader]:
    shards = _shards(found, there)
    headers = []
    for name, tensors in sorted(shards.items()):
        if name not in there:
            raise UnusableFile(f"{name} is missing: {INDEX} names {len(shards)} files of weights")
        try:
            header = read_header(found.path / name)
        except UnusableFile as error:
            raise UnusableFile(f"{name}: {error}") from error
        lost = sorted(tensors - header.names)
        if lost:
            raise UnusableFile(f"{name} lacks the tensor {lost[0][:80]!r}, which {INDEX} says is there")
        headers.append(header)
    return headers


def _shards(found: Found, there: set[str]) -> dict[str, set[str]]:
    """Files of weights, each with the tensors that the index says are in it."""
    if _SINGLE in there:
        return {_SINGLE: set()}
    if INDEX not in there:
        weights = sorted(name for name in there if name.endswith(".safetensors"))
        if weights:
            raise UnusableFile(f"holds {weights[0]}, and neither {_SINGLE} nor {INDEX}, which says what is where")
        raise UnusableFile(
            f"holds pickled weights alone ({found.pickles[0]}): only safetensors are read, because to read a pickle is"
            " to run what is in it"
        )
    try:
        text = _read(found.path / INDEX, _MAX_INDEX_BYTES)
        if text.count(b":") > 2 * MAX_TENSORS:
            raise UnusableFile(f"{INDEX} names over {MAX_TENSORS} tensors")
        index = _decode_index(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise UnusableFile(f"{INDEX} does not decode: {error}") from error
    shards: dict[str, set[str]] = {}
    for tensor, name in index.weight_map.items():
        if name != Path(name).name or not name.endswith(".safetensors") or name.startswith("."):
            raise UnusableFile(f"{INDEX} names the file {name[:80]!r}, which is none of this folder")
        shards.setdefault(name, set()).add(tensor)
    if not shards:
        raise UnusableFile(f"{INDEX} names no file of weights")
    return shards


def _quantisation(config: dict[str, Any], headers: list[SafetensorsHeader]) -> str:
    said = config.get("quantization_config")
    if isinstance(said, dict) and (method := _text(said.get("quant_method"))):
        bits = said.get("bits")
        return f"{method[:32]}-{bits}bit" if type(bits) is int and 0 < bits <= 64 else method[:32]
    by_type: dict[str, int] = {}
    for header in headers:
        for kind, elements in header.tensor_types.items():
            by_type[kind] = by_type.get(kind, 0) + elements
    return max(by_type, key=lambda kind: by_type[kind], default="unknown")


# Template and purpose -----------------------------------------------------------------------------------------------


def _template(folder: Path, there: set[str]) -> str | None:
    """The chat template, in the order in which transformers looks: a file of its own goes first."""
    if "chat_template.jinja" in there:
        return _read(folder / "chat_template.jinja", _MAX_CONFIG_BYTES).decode("utf-8", "replace")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if name in there and (template := _template_in(folder / name)):
            return template
    return None


def _template_in(path: Path) -> str:
    """What the JSON file has under "chat_template": a text, or several with names, of which "default" counts."""
    try:
        raw = bytes(_decode_tokenizer(_read(path, _MAX_TOKENIZER_BYTES)).chat_template)
        if len(raw) > _MAX_CONFIG_BYTES:
            raise UnusableFile(f"{path.name}: its chat template is longer than {_MAX_CONFIG_BYTES} bytes")
        template = _decode_template(raw) if raw else None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise UnusableFile(f"{path.name} does not decode: {error}") from error
    if isinstance(template, list):
        return next((one.template for one in template if one.name == "default"), "")
    return template or ""


def _is_embedding(config: dict[str, Any], there: set[str]) -> bool:
    if "modules.json" in there:
        return True
    architectures = config.get("architectures")
    names = [_text(name) for name in architectures] if isinstance(architectures, list) else []
    return bool(names) and all(name.endswith(_NOT_GENERATING) and not name.endswith("LMHeadModel") for name in names)


# Facts --------------------------------------------------------------------------------------------------------------


def facts_of(config: dict[str, Any], weights_bytes: int, parameters: int) -> Facts:
    """Size and shape by the names that configurations of transformers use; the older ones (GPT-2's) come second."""
    text = config.get("text_config")
    if isinstance(text, dict):
        config = text
    embedding = _whole(config, "hidden_size", "n_embd", "d_model")
    heads = _whole(config, "num_attention_heads", "n_head")
    layers = min(_whole(config, "num_hidden_layers", "n_layer"), 2**16)
    head_dim = _whole(config, "head_dim") or (embedding // heads if heads else 0)
    # Latent attention (DeepSeek) is expanded to every head: keys of two pieces, values of their own size.
    key_parts = _whole(config, "qk_nope_head_dim") + _whole(config, "qk_rope_head_dim")
    window, sliding_layers = _window(config)
    return Facts(
        weights_bytes=weights_bytes,
        layers=layers,
        heads=heads,
        kv_heads=heads if key_parts else _whole(config, "num_key_value_heads") or heads,
        head_dim_k=key_parts or head_dim,
        head_dim_v=_whole(config, "v_head_dim") or head_dim,
        embedding=embedding,
        feed_forward=_whole(config, "moe_intermediate_size", "intermediate_size", "n_inner") or 4 * embedding,
        vocabulary=_whole(config, "vocab_size"),
        context_tokens=_whole(config, "max_position_embeddings", "n_positions", "seq_length"),
        parameters=parameters,
        sliding_window=window,
        sliding_layers=sliding_layers,
        recurrent=_text(config.get("model_type")).startswith(_RECURRENT),
    )


def _window(config: dict[str, Any]) -> tuple[int | None, int]:
    window = _whole(config, "sliding_window")
    if not window or config.get("use_sliding_window") is False:
        return None, 0
    kinds = config.get("layer_types")
    sliding = [kind for kind in kinds if kind == "sliding_attention"] if isinstance(kinds, list) else []
    return window, len(sliding)


def _whole(config: dict[str, Any], *names: str) -> int:
    """The first of these that is a whole number from 1 to 2**31; 0 where none is."""
    for name in names:
        value = config.get(name)
        if type(value) is int and 0 < value < 2**31:
            return value
    return 0


# Files --------------------------------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _object(path: Path) -> dict[str, Any]:
    try:
        return _decode_object(_read(path, _MAX_CONFIG_BYTES))
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise UnusableFile(f"{path.name} does not decode: {error}") from error


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UnusableFile(f"{path.name} is longer than {limit} bytes")
    return content
