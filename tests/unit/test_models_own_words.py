"""What a model's files advise, where it can be followed."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest

from tests.gguf_files import entry, gguf, good_entries
from workers.models.backends.own_words import words_of_folder, words_of_gguf

FLOAT, INT = 6, 5


def test_a_gguf_file_advises_its_sampling(tmp_path: Path) -> None:
    """Under the names that requests use."""
    advice = [
        entry("general.sampling.temp", FLOAT, struct.pack("<f", 0.5)),
        entry("general.sampling.top_k", INT, struct.pack("<i", 20)),
    ]
    (tmp_path / "m.gguf").write_bytes(gguf([*good_entries(), *advice]))
    assert words_of_gguf(tmp_path / "m.gguf").sampling == {"temperature": 0.5, "top_k": 20}


@pytest.mark.parametrize("temperature", [math.nan, math.inf, -1.0, 1e9])
def test_advice_that_no_request_could_give_is_not_followed(tmp_path: Path, temperature: float) -> None:
    """It would be the default of every request, which nobody checks any more."""
    advice = [
        entry("general.sampling.temp", FLOAT, struct.pack("<f", temperature)),
        entry("general.sampling.top_k", INT, struct.pack("<i", -7)),
    ]
    (tmp_path / "m.gguf").write_bytes(gguf([*good_entries(), *advice]))
    assert words_of_gguf(tmp_path / "m.gguf").sampling == {}


def test_a_folder_that_advises_nonsense_advises_nothing(tmp_path: Path) -> None:
    """What is right beside it is followed all the same."""
    advice = {"temperature": True, "top_p": 17, "top_k": [40], "min_p": "0.1", "repetition_penalty": 1.1}
    (tmp_path / "generation_config.json").write_text(json.dumps(advice))
    assert words_of_folder(tmp_path).sampling == {"repeat_penalty": 1.1}
