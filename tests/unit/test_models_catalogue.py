"""The catalogue and its GGUF reader, on good files, broken ones and hostile ones."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import NotFound
from workers.models.catalogue import SHIPPED_ROOT, Catalogue, with_state
from workers.models.gguf_header import UnusableFile, read_header

U32, STRING, ARRAY, U64 = 4, 8, 9, 10


def text(value: str | bytes) -> bytes:
    encoded = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(encoded)) + encoded


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def gguf(
    entries: list[bytes] | None = None,
    tensors: list[tuple[str, list[int], int, int]] | None = None,
    *,
    version: int = 3,
    data_bytes: int | None = None,
) -> bytes:
    """A small GGUF file: one F32 tensor of 8 x 4 elements unless told otherwise."""
    entries = good_entries() if entries is None else entries
    tensors = [("token_embd.weight", [8, 4], 0, 0)] if tensors is None else tensors
    file = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries)) + b"".join(entries)
    for name, dims, kind, offset in tensors:
        file += text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        file += struct.pack("<IQ", kind, offset)
    file += b"\0" * (-len(file) % 32)
    return file + b"\0" * (128 if data_bytes is None else data_bytes)


def good_entries() -> list[bytes]:
    return [
        entry("general.architecture", STRING, text("llama")),
        entry("general.description", STRING, text("made for a test")),
        entry("general.license", STRING, text("Apache-2.0")),
        entry("general.file_type", U32, struct.pack("<I", 0)),
        entry("llama.context_length", U32, struct.pack("<I", 512)),
        entry("tokenizer.ggml.tokens", ARRAY, struct.pack("<IQ", STRING, 3) + text("a") + text("b" * 9) + text("")),
        entry("tokenizer.ggml.scores", ARRAY, struct.pack("<IQ3f", 6, 3, 0.0, 1.0, 2.0)),
        entry("tokenizer.chat_template", STRING, text("{{ messages }}")),
    ]


def scanned(root: Path, *more: Path) -> Catalogue:
    catalogue = Catalogue([root, *more])
    catalogue.scan()
    return catalogue


def only_entry(root: Path) -> Any:
    (found,) = scanned(root).entries()
    return found


def test_an_entry_says_what_the_file_says(tmp_path: Path) -> None:
    """Family, quantisation, parameters, context, license, description and template come from the header."""
    (tmp_path / "small.gguf").write_bytes(gguf())
    found = only_entry(tmp_path)
    assert (found.name, found.family, found.quantisation, found.state) == ("small", "llama", "F32", "available")
    assert (found.parameters, found.context_tokens, found.size_bytes) == (32, 512, len(gguf()))
    assert (found.license, found.description) == ("Apache-2.0", "made for a test")
    assert found.chat_template == "{{ messages }}"


def test_without_a_file_type_the_commonest_tensor_type_is_the_quantisation(tmp_path: Path) -> None:
    """Writers may leave `general.file_type` out."""
    tensors = [("a", [32], 0, 0), ("b", [64, 32], 8, 128)]
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf([entry("general.architecture", STRING, text("llama"))], tensors, data_bytes=4096))
    assert read_header(path).quantisation == "Q8_0"


BROKEN = {
    "empty": (b"", "the file is empty"),
    "short": (b"GG", "not a GGUF file"),
    "another format": (b"PK\x03\x04" + b"\0" * 64, "not a GGUF file"),
    "magic only": (b"GGUF", "truncated"),
    "version 1": (gguf(version=1), "GGUF version 1"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + b"\0" * 64, "big-endian"),
    "no weights": (gguf()[:-128], "truncated: tensor 'token_embd.weight' ends at byte"),
    "one byte missing": (gguf()[:-1], "truncated"),
    "cut in the metadata": (gguf()[:90], "truncated"),
    "huge entry count": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "metadata entries, the limit is"),
    "huge tensor count": (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "tensors, the limit is"),
    "entries past the end": (b"GGUF" + struct.pack("<IQQ", 3, 0, 9000), "truncated"),
    "text past the end": (gguf([text("k") + struct.pack("<IQ", STRING, 2**62)]), "metadata texts are over"),
    "array past the end": (gguf([entry("k", ARRAY, struct.pack("<IQ", U64, 2**61))]), "truncated"),
    "huge text array": (gguf([entry("k", ARRAY, struct.pack("<IQ", STRING, 2**40))]), "the limit is"),
    "array in an array": (gguf([entry("k", ARRAY, struct.pack("<IQ", ARRAY, 1))]), "unknown type 9"),
    "unknown type": (gguf([entry("k", 99, b"")]), "unknown type 99"),
    "bad UTF-8 in a key": (gguf([text(b"\xff\xfe") + struct.pack("<I", 0) + b"\0"]), "not UTF-8"),
    "bad alignment": (
        gguf([*good_entries(), entry("general.alignment", U32, struct.pack("<I", 3))]),
        "power of two",
    ),
    "no architecture": (gguf([]), "general.architecture is missing"),
    "nine dimensions": (gguf(tensors=[("t", [1] * 9, 0, 0)]), "9 dimensions"),
    "overflowing size": (gguf(tensors=[("t", [2**63, 2**63], 0, 0)]), "elements, the limit is"),
    "overflowing offset": (gguf(tensors=[("t", [8], 0, 2**63)]), "truncated"),
    "unknown tensor type of great size": (gguf(tensors=[("t", [2**60], 77, 0)]), "elements, the limit is"),
}


@pytest.mark.parametrize(("content", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_listed_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    """Nobody has to guess why a model cannot be used."""
    (tmp_path / "broken.gguf").write_bytes(content)
    found = only_entry(tmp_path)
    assert found.state == "unusable"
    assert reason in found.error


def test_bad_utf8_in_a_text_is_shown_with_replacements(tmp_path: Path) -> None:
    """A value is for people to read; only keys must be exact."""
    entries = [*good_entries()[:1], entry("general.description", STRING, text(b"caf\xe9"))]
    (tmp_path / "m.gguf").write_bytes(gguf(entries))
    assert only_entry(tmp_path).description == "caf\ufffd"


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_mutation_of_a_header_does_more_than_make_it_unusable(data: st.DataObject, tmp_path_factory: Any) -> None:
    """Whatever bytes stand in the file, reading it ends in a header or in UnusableFile."""
    content = bytearray(gguf())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        patch = data.draw(st.one_of(st.binary(min_size=1, max_size=9), st.just(b"\xff" * 8), st.just(b"\0" * 8)))
        content[at : at + len(patch)] = patch
    cut = data.draw(st.integers(0, len(content)))
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    path.write_bytes(content[:cut] if data.draw(st.booleans()) else content)
    with contextlib.suppress(UnusableFile):
        header = read_header(path)
        assert isinstance(header.architecture, str)
        assert isinstance(header.quantisation, str)
        assert header.context_tokens >= 0


def test_the_first_root_wins_a_name_and_the_loser_is_listed(tmp_path: Path) -> None:
    """Two files of one name do not hide each other silently."""
    roots = [tmp_path / "a", tmp_path / "b"]
    for root in roots:
        root.mkdir()
        (root / "m.gguf").write_bytes(gguf())
    catalogue = scanned(*roots)
    assert catalogue.find("m").path == str(roots[0] / "m.gguf")
    loser = catalogue.entries()[1]
    assert loser.state == "unusable"
    assert str(roots[0] / "m.gguf") in str(loser.error)


def test_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    """A model path stays inside its root, whatever links say."""
    outside = tmp_path / "secret.gguf"
    outside.write_bytes(gguf())
    root = tmp_path / "root"
    root.mkdir()
    (root / "m.gguf").symlink_to(outside)
    assert "outside the model root" in str(only_entry(root).error)


def test_a_dangling_link_and_a_folder_are_listed_as_unusable(tmp_path: Path) -> None:
    """Odd things called .gguf do not stop the scan."""
    (tmp_path / "gone.gguf").symlink_to(tmp_path / "nowhere")
    found = only_entry(tmp_path)
    assert found.state == "unusable"
    assert "cannot be read" in str(found.error)


def test_a_name_no_request_could_hold_is_listed_as_unusable(tmp_path: Path) -> None:
    """Blanks and control characters in file names are said, not served."""
    (tmp_path / "my model.gguf").write_bytes(gguf())
    assert "characters a model name cannot have" in str(only_entry(tmp_path).error)


def test_an_adapter_is_no_model_and_later_parts_of_a_split_model_are_not_listed(tmp_path: Path) -> None:
    """GGUF holds other things too."""
    adapter = [*good_entries(), entry("general.type", STRING, text("adapter"))]
    part = [*good_entries(), entry("split.no", 2, struct.pack("<H", 1))]
    (tmp_path / "lora.gguf").write_bytes(gguf(adapter))
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(gguf(part))
    found = only_entry(tmp_path)
    assert found.name == "lora"
    assert "holds a adapter" in str(found.error)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    """A download that completes becomes usable at the next scan."""
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf()[:-60])
    catalogue = scanned(tmp_path)
    assert catalogue.find("m").state == "unusable"
    path.write_bytes(gguf())
    catalogue.scan()
    assert catalogue.find("m").state == "available"


def test_an_unknown_name_is_answered_with_the_nearest_ones(tmp_path: Path) -> None:
    """A typing error gets a hint."""
    (tmp_path / "qwen-small.gguf").write_bytes(gguf())
    with pytest.raises(NotFound, match="nearest: qwen-small"):
        scanned(tmp_path).find("qwen-smal")
    with pytest.raises(NotFound, match="no model at all"):
        scanned(tmp_path / "missing").find("x")


def test_state_is_shown_for_usable_entries_only(tmp_path: Path) -> None:
    """An unusable file stays unusable whatever is loaded under its name."""
    (tmp_path / "m.gguf").write_bytes(gguf())
    found = only_entry(tmp_path)
    shown = with_state(found, "loaded", "m", 5.0)
    assert (shown.state, shown.instance, shown.loaded_at) == ("loaded", "m", 5.0)


def test_the_shipped_demo_model_is_usable() -> None:
    """What the first start relies on."""
    found = scanned(SHIPPED_ROOT).find("olympus-demo")
    assert found.state == "available"
    assert found.chat_template
