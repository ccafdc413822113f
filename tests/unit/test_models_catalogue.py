"""The catalogue and its GGUF reader, on good files, broken ones and hostile ones."""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import NotFound
from tests.gguf_files import ARRAY, STRING, U32, U64, entry, gguf, good_entries, text, write_parts
from workers.models.backends.backend import Remote
from workers.models.catalogue import SHIPPED_ROOT, Catalogue
from workers.models.found import MAX_DEPTH
from workers.models.gguf_header import UnusableFile, read_header
from workers.models.routing.rules import RemoteModel, Rules


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
    "too many numbers in all": (
        gguf([*good_entries(), *(entry(f"k{n}", ARRAY, struct.pack("<IQ", 0, 1024) + bytes(1024)) for n in range(65))]),
        "arrays hold over 65536 numbers",
    ),
    "too much in the keys": (
        gguf([*good_entries(), *(entry(f"{n:060000}", U32, bytes(4)) for n in range(75))]),
        "metadata texts are over",
    ),
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


def test_texts_of_all_arrays_together_are_bounded(tmp_path: Path) -> None:
    """A file of holes costs its maker nothing, and the reader a step for each text."""
    arrays = [entry(f"k{n}", ARRAY, struct.pack("<IQ", STRING, 2**20)) for n in range(3)]
    with (tmp_path / "broken.gguf").open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 3))
        for array in arrays:
            file.write(array)
            file.seek(8 * 2**20, os.SEEK_CUR)
        file.write(bytes(8 * 2**20))
    assert "claims 1048576 texts in 'k2', the limit is 0" in str(only_entry(tmp_path).error)


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


def test_a_link_to_itself_is_listed_as_unusable(tmp_path: Path) -> None:
    """It does not end the scan, and with it the start of the service."""
    (tmp_path / "m.gguf").symlink_to("m.gguf")
    (tmp_path / "good.gguf").write_bytes(gguf())
    good, odd = scanned(tmp_path).entries()
    assert (good.state, odd.state) == ("available", "unusable")
    assert "symbolic links" in str(odd.error)


def test_folders_within_folders_end_somewhere(tmp_path: Path) -> None:
    """As deep as they can be made they would end the scan."""
    near = tmp_path.joinpath(*"d" * MAX_DEPTH)
    (near / "far").mkdir(parents=True)
    (near / "near.gguf").write_bytes(gguf())
    (near / "far" / "far.gguf").write_bytes(gguf())
    assert [entry.name for entry in scanned(tmp_path).entries()] == ["near"]


def test_a_name_no_request_could_hold_is_listed_as_unusable(tmp_path: Path) -> None:
    """Blanks and control characters in file names are said, not served."""
    (tmp_path / "my model.gguf").write_bytes(gguf())
    assert "characters a model name cannot have" in str(only_entry(tmp_path).error)


@pytest.mark.parametrize(
    "more",
    [
        entry("general.type", STRING, text("adapter")),
        entry("general.type", STRING, text("mmproj")),
        entry("general.architecture", STRING, text("clip")),
    ],
    ids=["adapter", "mmproj", "clip"],
)
def test_what_is_used_with_a_model_is_not_listed_as_one(tmp_path: Path, more: bytes) -> None:
    """GGUF holds adapters and image encoders too."""
    (tmp_path / "other.gguf").write_bytes(gguf([*good_entries(), more]))
    assert scanned(tmp_path).entries() == []


def test_a_split_model_is_one_entry_of_the_size_of_all_parts(tmp_path: Path) -> None:
    """Parts are no models, and none of them is forgotten."""
    write_parts(tmp_path, 3)
    found = only_entry(tmp_path)
    assert (found.name, found.state, found.parameters) == ("big", "available", 96)
    assert found.size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert found.path.endswith("big-00001-of-00003.gguf")


@pytest.mark.parametrize("missing", [(1,), (2,), (2, 3)])
def test_a_missing_part_is_named(tmp_path: Path, missing: tuple[int, ...]) -> None:
    """Whoever copied the files sees which one to fetch."""
    write_parts(tmp_path, 3, missing=missing)
    found = only_entry(tmp_path)
    assert (found.name, found.state) == ("big", "unusable")
    assert f"{len(missing)} of its 3 parts are missing, the first is big-{missing[0]:05}-of-00003.gguf" in found.error


def test_a_broken_or_renamed_part_makes_the_model_unusable(tmp_path: Path) -> None:
    """A part that is cut short is named; a first part alone, under another name, says that it is one."""
    write_parts(tmp_path, 2)
    part = tmp_path / "big-00002-of-00002.gguf"
    part.write_bytes(part.read_bytes()[:-9])
    assert "big-00002-of-00002.gguf: truncated" in only_entry(tmp_path).error
    part.unlink()
    (tmp_path / "big-00001-of-00002.gguf").rename(tmp_path / "big.gguf")
    assert "is part 1 of 2 of a split model" in only_entry(tmp_path).error


def test_parts_cannot_make_up_a_model_with_a_million_files(tmp_path: Path) -> None:
    """A count in a file name is believed up to a thousand; beyond, it is a name like any other."""
    (tmp_path / "x-00001-of-99999.gguf").write_bytes(gguf())
    assert only_entry(tmp_path).name == "x-00001-of-99999"


def test_facts_say_the_shape_of_the_network(tmp_path: Path) -> None:
    """What the estimate of memory rests on; heads that differ by layer are averaged, windows counted."""

    def number(key: str, value: int) -> bytes:
        return entry(f"llama.{key}", U32, struct.pack("<I", value))

    shape = [
        number("block_count", 4),
        number("embedding_length", 64),
        number("feed_forward_length", 256),
        number("attention.head_count", 8),
        number("attention.key_length", 16),
        number("attention.sliding_window", 128),
        entry("llama.attention.head_count_kv", ARRAY, struct.pack("<IQ4i", 5, 4, 2, 0, 2, 1)),
        entry("llama.attention.sliding_window_pattern", ARRAY, struct.pack("<IQ4?", 7, 4, True, False, True, True)),
    ]
    (tmp_path / "m.gguf").write_bytes(gguf([*good_entries(), *shape]))
    facts = scanned(tmp_path).facts("m")
    assert (facts.layers, facts.embedding, facts.feed_forward, facts.vocabulary) == (4, 64, 256, 3)
    assert (facts.kv_heads, facts.head_dim_k, facts.head_dim_v, facts.recurrent) == (2, 16, 8, True)
    assert (facts.sliding_window, facts.sliding_layers, facts.context_tokens) == (128, 3, 512)
    assert (facts.weights_bytes, facts.parameters) == (128, 32)


def test_capabilities_come_from_the_file(tmp_path: Path) -> None:
    """A template with tools, an architecture that only embeds, a name of a model for programs."""
    tools = entry("tokenizer.chat_template", STRING, text("{% if tools %}{{ tools }}{% endif %}"))
    (tmp_path / "my-coder.gguf").write_bytes(gguf([*good_entries(), tools]))
    bert = [entry("general.architecture", STRING, text("bert"))]
    (tmp_path / "vectors.gguf").write_bytes(gguf(bert))
    pooled = [*good_entries(), entry("llama.pooling_type", U32, struct.pack("<I", 3))]
    (tmp_path / "pooled.gguf").write_bytes(gguf(pooled))
    catalogue = scanned(tmp_path)
    assert {"generate", "chat", "tools", "json_schema", "adapters", "code"} <= set(
        catalogue.find("my-coder").capabilities
    )
    assert catalogue.find("vectors").capabilities == ["embed"]
    assert catalogue.find("pooled").capabilities == ["embed"]


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    """What is being written, and what other systems leave beside files, is no model."""
    (tmp_path / "._m.gguf").write_bytes(gguf())
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "m.gguf").write_bytes(gguf())
    assert scanned(tmp_path).entries() == []


def test_a_root_within_a_root_lists_nothing_twice(tmp_path: Path) -> None:
    """A model is not hidden by itself."""
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "m.gguf").write_bytes(gguf())
    (found,) = scanned(tmp_path, inner).entries()
    assert found.state == "available"


def test_remote_models_are_entries_and_never_show_a_key() -> None:
    """They have no files; what runs them is an endpoint."""
    remote = Remote(base_url="http://127.0.0.1:9/v1", model="theirs", key_env="THE_KEY")
    catalogue = Catalogue([], Rules(remotes=[RemoteModel(name="far/model:1", remote=remote, context_tokens=4096)]))
    catalogue.scan()
    found = catalogue.find("far/model:1")
    assert (found.format, found.backend, found.state, found.context_tokens) == ("remote", "openai", "available", 4096)
    assert catalogue.entry("far/model:1").remote.remote is remote
    assert "THE_KEY" not in repr(found)


def test_an_alias_means_a_model_and_never_hides_one(tmp_path: Path) -> None:
    """A file's own name goes before an alias of the same name; a dangling alias says what it meant."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.gguf").write_bytes(gguf())
    catalogue = scanned(tmp_path)
    catalogue.use_aliases({"best:latest": "two", "one": "two", "old": "gone"})
    assert catalogue.find("best:latest").name == "two"
    assert catalogue.find("one").name == "one"
    assert catalogue.find("two").aliases == ["best:latest", "one"]
    with pytest.raises(NotFound, match=r"no model 'gone' \(old is an alias of it\)"):
        catalogue.find("old")


def test_a_file_that_changed_since_the_scan_is_noticed(tmp_path: Path) -> None:
    """Size, time or inode tell; a file that went away too."""
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf())
    catalogue = scanned(tmp_path)
    assert not catalogue.has_changed("m")
    other = tmp_path / "other"
    other.write_bytes(gguf())
    other.replace(path)
    assert catalogue.has_changed("m")
    path.unlink()
    assert catalogue.has_changed("m")


def test_elements_of_all_tensors_together_stay_within_what_a_message_holds(tmp_path: Path) -> None:
    """Many tensors, each within the limit, must not add up to a number that cannot be sent."""
    tensors = [(f"t{number}", [2**48], 77, 0) for number in range(2)]
    (tmp_path / "m.gguf").write_bytes(gguf(tensors=tensors))
    assert "the limit is 281474976710656 in all" in only_entry(tmp_path).error


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


def test_the_shipped_demo_model_is_usable() -> None:
    """What the first start relies on."""
    found = scanned(SHIPPED_ROOT).find("olympus-demo")
    assert found.state == "available"
    assert found.chat_template
