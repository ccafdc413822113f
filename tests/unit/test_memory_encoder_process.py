"""The encoder's process with a model of a few lines: who goes first, what comes back in which order, what fails alone."""

from __future__ import annotations

import io
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from workers.memory.vectors import encoder_process
from workers.memory.vectors.encoder_process import CannotLoad
from workers.memory.vectors.frames import (
    LENGTH_BYTES,
    Encode,
    EncoderOptions,
    Failed,
    Ready,
    Said,
    Unusable,
    Vectors,
    decode_said,
    frame,
)

np = pytest.importorskip("numpy", reason="the encoder's process needs the extra 'memory'")
PART_TEXTS = pytest.importorskip("workers.memory.vectors.bulk").PART_TEXTS

SOON_S = 20.0


class LengthModel:
    """A text's vector is its length. Other texts than queries wait for `may_go_on`; the text "bad" fails."""

    dimension = 1

    def __init__(self, workers: int = 2) -> None:
        self.workers = workers
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.calls: list[list[str]] = []

    def encode(self, texts: Sequence[str]) -> Any:
        self.calls.append(list(texts))
        assert self.may_go_on.wait(SOON_S)
        return self.encode_queries(texts)

    def encode_queries(self, texts: Sequence[str]) -> Any:
        if "bad" in texts:
            raise ValueError("it is bad")
        return np.array([[len(text)] for text in texts], np.float32)


class Dialogue:
    """The service's end of both pipes."""

    def __init__(self, words: io.RawIOBase, said: queue.SimpleQueue[Said]) -> None:
        self._words = words
        self._said = said

    def ask(self, id: int, texts: Sequence[str], *, is_query: bool = False) -> None:
        """Send one `Encode`."""
        self._words.write(frame(Encode(id=id, is_query=is_query, texts=list(texts))))

    def hear(self) -> Said:
        """The next word."""
        return self._said.get(timeout=SOON_S)

    def hear_vectors(self) -> tuple[int, list[float]]:
        """The next word, which is vectors: their id and their only components."""
        word = self.hear()
        assert isinstance(word, Vectors), word
        return word.id, np.frombuffer(word.vectors, np.float32).tolist()


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, model: LengthModel, *, dimension: int = 1) -> Iterator[Dialogue]:
    """`encoder_process.serve` in a thread, with `model` loaded."""

    def load(options: EncoderOptions) -> tuple[LengthModel, str, bool]:
        if options.folder == "nowhere":
            raise CannotLoad("nothing is there")
        return model, "lines", False

    monkeypatch.setattr(encoder_process, "load", load)
    words_out, words_in = os.pipe()
    said_out, said_in = os.pipe()
    said: queue.SimpleQueue[Said] = queue.SimpleQueue()

    def listen() -> None:
        with os.fdopen(said_out, "rb") as stream:
            while head := stream.read(LENGTH_BYTES):
                said.put(decode_said(stream.read(int.from_bytes(head, "big"))))

    # The process's own threads never end, it is the process that does; here the tests' process is.
    with os.fdopen(said_in, "wb", buffering=0) as answers, os.fdopen(words_out, "rb") as words:
        pipe = encoder_process.Pipe(answers)
        threads = [
            threading.Thread(target=encoder_process.serve, args=(encoder_process.Words(words, -1), pipe), daemon=True),
            threading.Thread(target=listen, daemon=True),
        ]
        for thread in threads:
            thread.start()
        with os.fdopen(words_in, "wb", buffering=0) as asking:
            asking.write(frame(EncoderOptions(folder="f", sha256="0", dimension=dimension, cache="c", threads=0)))
            with suppress(BrokenPipeError):
                yield Dialogue(asking, said)
        threads[0].join(SOON_S)


def test_query_overtakes_all_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every thread for other texts is busy and more of them wait: the query is answered, then the rest."""
    model = LengthModel()
    model.may_go_on.clear()
    with serving(monkeypatch, model) as child:
        assert isinstance(child.hear(), Ready)
        child.ask(1, ["x"] * 5 * PART_TEXTS)
        child.ask(2, ["xx"])
        child.ask(3, ["query"], is_query=True)

        assert child.hear_vectors() == (3, [5.0])
        assert len(model.calls) <= model.workers
        model.may_go_on.set()
        assert {child.hear_vectors()[0], child.hear_vectors()[0]} == {1, 2}


def test_vectors_come_back_in_the_order_of_their_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Although they are encoded in parts of similar length, by several threads."""
    model = LengthModel(workers=3)
    texts = ["x" * (number * 37 % 101) for number in range(5 * PART_TEXTS + 7)]
    with serving(monkeypatch, model) as child:
        child.hear()
        child.ask(1, texts)
        assert child.hear_vectors() == (1, [float(len(text)) for text in texts])
    spans = sorted((min(map(len, call)), max(map(len, call))) for call in model.calls)
    assert len(spans) == 6
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_texts_that_cannot_be_encoded_fail_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked hears why, once, and what comes next is done."""
    with serving(monkeypatch, LengthModel(workers=1)) as child:
        child.hear()
        child.ask(1, ["bad", *["x"] * 3 * PART_TEXTS])
        child.ask(2, ["bad"], is_query=True)
        child.ask(3, ["good"])
        child.ask(4, ["good"], is_query=True)

        words = sorted((child.hear() for _ in range(4)), key=lambda word: word.id)  # type: ignore[union-attr]
        assert words[0] == Failed(id=1, reason="ValueError: it is bad")
        assert words[1] == Failed(id=2, reason="ValueError: it is bad")
        assert [type(word) for word in words[2:]] == [Vectors, Vectors]


def test_service_that_gives_way_itself_still_encodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `nice -n 15` a thread may not go back to niceness 10, and must not try."""
    asked: list[int] = []
    monkeypatch.setattr(os, "getpriority", lambda which, who: 15)
    monkeypatch.setattr(os, "setpriority", lambda which, who, niceness: asked.append(niceness))
    with serving(monkeypatch, LengthModel(workers=1)) as child:
        child.hear()
        child.ask(1, ["good"])
        assert child.hear_vectors() == (1, [4.0])
    assert asked in ([19], [])


def test_model_of_another_dimension_is_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its vectors would not fit the index; the process says so and ends."""
    with serving(monkeypatch, LengthModel(), dimension=384) as child:
        assert child.hear() == Unusable(reason="the model makes 1 components, its files say 384")


def test_words_that_are_none_end_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is guessed: what cannot be read raises, and the service starts a new process."""
    words = io.BytesIO((3).to_bytes(LENGTH_BYTES, "big") + b"\xc1\xc1\xc1")
    with pytest.raises(msgspec.DecodeError):
        encoder_process.serve(encoder_process.Words(words, -1), encoder_process.Pipe(io.BytesIO()))
