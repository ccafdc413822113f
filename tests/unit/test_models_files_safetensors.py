"""Folders of safetensors: what they say, what is missing from them, and what hostile ones try."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.models.catalogue import SHIPPED_ROOT, Catalogue
from workers.models.gguf_header import UnusableFile
from workers.models.safetensors_header import MAX_HEADER_BYTES, read_header
from workers.models.safetensors_model import facts_of

TENSORS = {
    "embed": {"dtype": "BF16", "shape": [8, 4], "data_offsets": [0, 64]},
    "norm": {"dtype": "F32", "shape": [4], "data_offsets": [64, 80]},
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}


def safetensors(tensors: Any = TENSORS, *, data_bytes: int = 80, header: bytes | None = None) -> bytes:
    text = json.dumps(tensors).encode() if header is None else header
    return struct.pack("<Q", len(text)) + text + b"\0" * data_bytes


def folder(root: Path, name: str = "model", config: Any = CONFIG, **files: bytes | None) -> Path:
    """A usable folder; `files` adds to it, replaces (names with __ for dots) or takes away (None)."""
    path = root / name
    path.mkdir(parents=True)
    content: dict[str, bytes | None] = {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": safetensors(),
        "tokenizer.json": b"{}",
        **{key.replace("__", "."): value for key, value in files.items()},
    }
    for key, value in content.items():
        if value is not None:
            (path / key).write_bytes(value)
    return path


def entries(root: Path) -> list[Any]:
    catalogue = Catalogue([root])
    catalogue.scan()
    return catalogue.entries()


def only(root: Path) -> Any:
    (found,) = entries(root)
    return found


def test_a_folder_says_what_its_files_say(tmp_path: Path) -> None:
    """Name, family, type, size, window and template come from the folder, its configuration and its headers."""
    path = folder(tmp_path, "small", tokenizer_config__json=b'{"chat_template": "{{ messages }} {{ tools }}"}')
    found = only(tmp_path)
    assert (found.name, found.format, found.family, found.backend) == ("small", "safetensors", "llama", "transformers")
    assert (found.quantisation, found.parameters, found.context_tokens) == ("BF16", 36, 512)
    assert found.size_bytes == sum(file.stat().st_size for file in path.iterdir())
    assert (found.state, found.chat_template) == ("available", "{{ messages }} {{ tools }}")
    assert {"generate", "chat", "tools", "adapters"} <= set(found.capabilities)


def test_the_shipped_folder_is_usable_and_its_facts_are_those_of_the_gguf_file() -> None:
    """Both formats of the demo model lead to the same estimate of memory."""
    catalogue = Catalogue([SHIPPED_ROOT])
    catalogue.scan()
    (name,) = [found.name for found in catalogue.entries() if found.format == "safetensors"]
    folder_facts, file_facts = catalogue.facts(name), catalogue.facts("olympus-demo")
    for field in ("layers", "kv_heads", "head_dim_k", "head_dim_v", "embedding", "feed_forward", "vocabulary"):
        assert getattr(folder_facts, field) == getattr(file_facts, field), field
    assert catalogue.find(name).chat_template


def index_of(**tensors: str) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": tensors}).encode()


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    """All shards count; the index says what must be where."""
    shard = {"norm": {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]}}
    path = folder(tmp_path, model__safetensors=None)
    (path / "model.safetensors.index.json").write_bytes(index_of(embed="a.safetensors", norm="b.safetensors"))
    (path / "a.safetensors").write_bytes(safetensors())
    assert "b.safetensors is missing" in only(tmp_path).error
    (path / "b.safetensors").write_bytes(safetensors(shard, data_bytes=8))
    found = only(tmp_path)
    assert (found.state, found.parameters) == ("available", 40)
    (path / "b.safetensors").write_bytes(safetensors({}, data_bytes=0))
    assert "b.safetensors lacks the tensor 'norm'" in only(tmp_path).error


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "x.bin", ""])
def test_an_index_cannot_name_files_elsewhere(tmp_path: Path, name: str) -> None:
    """The names of an index are names of files in the folder, whatever it says."""
    path = folder(tmp_path, model__safetensors=None)
    (path / "model.safetensors.index.json").write_bytes(index_of(embed=name))
    assert "which is none of this folder" in only(tmp_path).error


UNUSABLE: dict[str, tuple[dict[str, bytes | None], str]] = {
    "no configuration": ({"config__json": None}, "config.json is missing"),
    "broken configuration": ({"config__json": b'{"model_type": '}, "config.json does not decode"),
    "deep configuration": ({"config__json": b'{"a":' + b"[" * 100_000}, "config.json does not decode"),
    "huge configuration": ({"config__json": b" " * (5 << 20)}, "config.json is longer than"),
    "configuration that is a list": ({"config__json": b"[]"}, "config.json does not decode"),
    "no kind": ({"config__json": b"{}"}, "names no model_type"),
    "template of a wrong kind": (
        {"tokenizer_config__json": b'{"chat_template": 7}'},
        "tokenizer_config.json does not decode",
    ),
    "huge template": (
        {"tokenizer_config__json": b'{"chat_template": "' + b"x" * (1 << 20) + b'"}'},
        "its chat template is longer than",
    ),
    "no tokenizer": ({"tokenizer__json": None}, "holds no tokenizer"),
    "pickle alone": ({"model__safetensors": None, "pytorch_model__bin": b"\x80"}, "pickled weights alone"),
    "other name": ({"model__safetensors": None, "weights__safetensors": safetensors()}, "weights.safetensors"),
    "empty file": ({"model__safetensors": b""}, "it has 0 bytes"),
    "truncated header": ({"model__safetensors": safetensors()[:60]}, "truncated"),
    "truncated data": ({"model__safetensors": safetensors()[:-1]}, "truncated: the tensors take 80 bytes"),
    "more data": ({"model__safetensors": safetensors() + b"\0"}, "not what its header says"),
    "huge header": (
        {"model__safetensors": struct.pack("<Q", 2**63) + b"{}"},
        f"the limit is {MAX_HEADER_BYTES}",
    ),
    "header that is no JSON": ({"model__safetensors": safetensors(header=b"\xff" * 40)}, "does not decode"),
    "deep header": ({"model__safetensors": safetensors(header=b'{"a":' * 50_000)}, "does not decode"),
    "negative offset": (
        {"model__safetensors": safetensors({"a": {"dtype": "U8", "shape": [1], "data_offsets": [-1, 0]}})},
        "does not decode",
    ),
    "overlap": (
        {"model__safetensors": safetensors(dict.fromkeys("ab", TENSORS["embed"]))},
        "begins at byte 0 of the data, the one before ends at 64",
    ),
    "size that lies": (
        {"model__safetensors": safetensors({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 80]}})},
        "claims bytes 0 to 80",
    ),
    "overflowing shape": (
        {"model__safetensors": safetensors({"a": {"dtype": "F32", "shape": [2**61] * 9, "data_offsets": [0, 80]}})},
        "elements, the limit is",
    ),
    "a tensor that ends before it begins": (
        {"model__safetensors": safetensors({**TENSORS, "x": {"dtype": "NEW", "shape": [1], "data_offsets": [80, 3]}})},
        "ends at byte 3 of the data, before its beginning",
    ),
    "data that are nobody's": (
        {"model__safetensors": safetensors({"a": {"dtype": "NEW", "shape": [1], "data_offsets": [0, 0]}})},
        "the tensors take 0 bytes",
    ),
}


@pytest.mark.parametrize(("files", "reason"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_an_unusable_folder_is_listed_with_the_reason(tmp_path: Path, files: Any, reason: str) -> None:
    """Nobody has to guess why a model cannot be used."""
    folder(tmp_path, **files)
    found = only(tmp_path)
    assert found.state == "unusable"
    assert reason in found.error


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_mutation_of_a_header_does_more_than_make_it_unusable(data: st.DataObject, tmp_path_factory: Any) -> None:
    """Whatever bytes stand in the file, reading it ends in a header or in UnusableFile."""
    content = bytearray(safetensors())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        patch = data.draw(st.one_of(st.binary(min_size=1, max_size=9), st.sampled_from([b"[[[", b"9" * 30, b'"'])))
        content[at : at + len(patch)] = patch
    cut = data.draw(st.integers(0, len(content)))
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(content[:cut] if data.draw(st.booleans()) else content)
    try:
        header = read_header(path)
    except UnusableFile:
        return
    assert 0 <= header.parameters <= 2**48


def test_adapters_are_no_models(tmp_path: Path) -> None:
    """A folder of PEFT is used with a model, and its weights alone are none."""
    folder(tmp_path, "adapter", adapter_config__json=b"{}", adapter_model__safetensors=safetensors())
    (tmp_path / "loose.safetensors").write_bytes(safetensors())
    assert entries(tmp_path) == []


def test_subfolders_of_a_model_are_parts_of_it(tmp_path: Path) -> None:
    """The modules of a sentence encoder have configurations and weights of their own; it makes vectors."""
    path = folder(tmp_path, "encoder", {**CONFIG, "architectures": ["BertModel"]}, modules__json=b"[]")
    folder(path, "2_Dense")
    found = only(tmp_path)
    assert (found.name, found.capabilities) == ("encoder", ["embed"])


def test_a_link_out_of_the_root_is_refused_and_one_within_is_not(tmp_path: Path) -> None:
    """The hub's cache links each file to another folder of the same root; its name is in the path."""
    secret = tmp_path / "secret.safetensors"
    secret.write_bytes(safetensors())
    root = tmp_path / "root"
    snapshot = folder(root, f"models--owner--nice-name/snapshots/{'a' * 40}", model__safetensors=None)
    (snapshot / "model.safetensors").symlink_to(secret)
    assert "outside the model root" in only(root).error
    blob = root / "models--owner--nice-name" / "blobs" / "abc"
    blob.parent.mkdir()
    blob.write_bytes(safetensors())
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(blob)
    found = only(root)
    assert (found.name, found.state) == ("nice-name", "available")


def test_a_folder_named_for_its_format_takes_the_name_around_it(tmp_path: Path) -> None:
    """`llama/hf` is a llama, and not the only "hf"."""
    folder(tmp_path, "llama/hf")
    assert only(tmp_path).name == "llama-hf"


def test_a_pipe_in_a_folder_does_not_stop_the_scan(tmp_path: Path) -> None:
    """Reading one would wait for ever."""
    import os

    path = folder(tmp_path, config__json=None)
    os.mkfifo(path / "config.json")
    assert "config.json is not a regular file" in only(tmp_path).error


TEMPLATES = {
    "a file of its own": ({"chat_template__jinja": b"J", "tokenizer_config__json": b'{"chat_template": "T"}'}, "J"),
    "its JSON": ({"chat_template__json": b'{"chat_template": "C"}'}, "C"),
    "the default of several": (
        {"tokenizer_config__json": b'{"chat_template": [{"name": "x"}, {"name": "default", "template": "D"}]}'},
        "D",
    ),
    "no default of several": ({"tokenizer_config__json": b'{"chat_template": [{"name": "x"}]}'}, None),
    "nothing": ({"tokenizer_config__json": b'{"chat_template": null}'}, None),
}


@pytest.mark.parametrize(("files", "template"), TEMPLATES.values(), ids=TEMPLATES.keys())
def test_the_template_is_found_where_transformers_looks(tmp_path: Path, files: Any, template: str | None) -> None:
    """Newer files go before the tokenizer's configuration."""
    folder(tmp_path, **files)
    assert only(tmp_path).chat_template == template


def test_a_changed_file_of_a_folder_is_read_again(tmp_path: Path) -> None:
    """A shard that arrives makes the folder usable at the next scan."""
    path = folder(tmp_path, model__safetensors=safetensors()[:-1])
    catalogue = Catalogue([tmp_path])
    catalogue.scan()
    assert catalogue.find("model").state == "unusable"
    (path / "model.safetensors").write_bytes(safetensors())
    assert catalogue.has_changed("model")
    catalogue.scan()
    assert catalogue.find("model").state == "available"


CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "older names": (
        {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024},
        {
            "embedding": 768,
            "layers": 12,
            "kv_heads": 12,
            "head_dim_k": 64,
            "context_tokens": 1024,
            "feed_forward": 3072,
        },
    ),
    "images and text": ({"text_config": CONFIG, "vision_config": {}}, {"layers": 2, "kv_heads": 2, "embedding": 64}),
    "windows": (
        {**CONFIG, "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]},
        {"sliding_window": 64, "sliding_layers": 1},
    ),
    "windows that are off": (
        {**CONFIG, "sliding_window": 64, "use_sliding_window": False},
        {"sliding_window": None, "sliding_layers": 0},
    ),
    "latent attention": (
        {**CONFIG, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128},
        {"kv_heads": 8, "head_dim_k": 192, "head_dim_v": 128},
    ),
    "recurrent": ({**CONFIG, "model_type": "mamba2"}, {"recurrent": True}),
    "nonsense": (
        {
            "hidden_size": "many",
            "num_hidden_layers": -3,
            "num_attention_heads": 0,
            "vocab_size": 2**80,
            "head_dim": True,
        },
        {"embedding": 0, "layers": 0, "kv_heads": 0, "vocabulary": 0, "head_dim_k": 0},
    ),
}


@pytest.mark.parametrize(("config", "expected"), CONFIGS.values(), ids=CONFIGS.keys())
def test_facts_are_read_from_every_kind_of_configuration(config: dict[str, Any], expected: dict[str, Any]) -> None:
    """Names differ by family and age; what is no number counts as not said."""
    facts = facts_of(config, 10, 5)
    assert {field: getattr(facts, field) for field in expected} == expected
