"""The encoder as a process: `python -m workers.memory.vectors.encoder_process --parent PID`.

Reads what to encode from stdin and answers on stdout; see frames.py. Ends with the end of stdin, and never outlives the
service. Queries are encoded where they are read, with no other thread between; other texts by the threads of bulk.py.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol

import msgspec

from bus.parent import die_with_parent, take_stdout
from workers.memory.vectors.frames import (
    LENGTH_BYTES,
    Encode,
    EncoderOptions,
    Failed,
    Ready,
    Unusable,
    Vectors,
    decode_encode,
    decode_options,
    frame,
)

if TYPE_CHECKING:
    from workers.memory.vectors.bert import Floats

_MISSING: Final = "the encoder needs {name}, which is not installed: pip install -c constraints.txt '.[{extra}]' in the project's folder"


class Model(Protocol):
    """A loaded model, whichever package runs it. workers: calls of `encode` that are worth making at once."""

    dimension: int
    workers: int

    def encode(self, texts: Sequence[str]) -> Floats:
        """Vectors of length 1, float32 (texts, dimension)."""
        ...

    def encode_queries(self, texts: Sequence[str]) -> Floats:
        """As `encode`, as soon as possible."""
        ...


class CannotLoad(Exception):
    """The model cannot be loaded here; the message says why and what helps."""


class Pipe:
    """The way back to the service, for several threads."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def say(self, word: msgspec.Struct) -> None:
        """Send one word whole."""
        data = memoryview(frame(word))
        with self._lock:
            while data:
                data = data[self._stream.write(data) :]


def load(options: EncoderOptions) -> tuple[Model, str, bool]:
    """The model, what runs it, and whether its file was made just now. Raises CannotLoad."""
    folder = Path(options.folder)
    try:
        from workers.memory.vectors.bert import GRAPH_VERSION, UnsupportedModel, read_config
        from workers.memory.vectors.onnx_model import OnnxModel
    except ModuleNotFoundError as error:
        raise CannotLoad(_MISSING.format(name=error.name, extra="memory")) from error
    try:
        read_config(folder)
    except UnsupportedModel as error:
        return _load_other(folder, options.threads, str(error)), "sentence-transformers", False
    file = Path(options.cache) / f"{options.sha256}-{GRAPH_VERSION}.onnx"
    is_new = not file.is_file()
    if is_new:
        _prepare(folder, file)
    try:
        return OnnxModel(file, folder, threads=options.threads), "onnxruntime", is_new
    except Exception as error:
        # onnxruntime and the tokenizer raise plain exceptions of many kinds. The next start makes the file anew.
        file.unlink(missing_ok=True)
        raise CannotLoad(f"the prepared model {file} cannot be loaded: {error}") from error


def _prepare(folder: Path, file: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "workers.memory.vectors.prepare", str(folder), str(file)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    said = done.stderr.decode(errors="replace").strip()
    if done.returncode:
        raise CannotLoad(f"the model in {folder} could not be prepared: {said.splitlines()[-1] if said else 'no word'}")
    if said:
        sys.stderr.write(f"{said}\n")


def _load_other(folder: Path, threads: int, why: str) -> Model:
    from workers.memory.vectors.sentence_model import SentenceModel

    try:
        return SentenceModel(folder, threads=threads)
    except ModuleNotFoundError as error:
        missing = _MISSING.format(name=error.name, extra="search")
        raise CannotLoad(f"{missing} (this model cannot run without: {why})") from error
    except Exception as error:
        # The package raises whatever its own libraries do, and every cause is one of the model's files.
        raise CannotLoad(f"the model in {folder} cannot be loaded: {error}") from error


def answer_query(model: Model, job: Encode, pipe: Pipe) -> None:
    """Encode a query."""
    try:
        vectors = model.encode_queries(job.texts)
    except Exception as error:  # noqa: BLE001 - told to whoever asked; the next job may be fine
        pipe.say(Failed(id=job.id, reason=f"{type(error).__name__}: {error}"))
        return
    pipe.say(Vectors(id=job.id, vectors=vectors.tobytes()))


class Words:
    """What the service says. bell: an eventfd that is rung once for each word and once at the end, -1 for none.

    Whoever waits for a socket is woken on the core of whoever writes to it, because Linux takes it that the writer is about
    to sleep; the service has more to do, and a query stood 0.5 ms behind that beside an idle core. A bell wakes on any.
    """

    def __init__(self, stream: BinaryIO, bell: int) -> None:
        self._stream = stream
        self._bell = bell

    def read(self) -> bytes | None:
        """The next word, None once there are no more."""
        if self._bell >= 0:
            os.eventfd_read(self._bell)
        head = self._stream.read(LENGTH_BYTES)
        if len(head) < LENGTH_BYTES:
            return None
        return self._stream.read(int.from_bytes(head, "big"))


def serve(words: Words, pipe: Pipe) -> None:
    """Load the model named first, then encode until the words end."""
    began_at = time.monotonic()
    first = words.read()
    if first is None:
        return
    options = decode_options(first)
    try:
        model, backend, is_new = load(options)
        if model.dimension != options.dimension:
            raise CannotLoad(f"the model makes {model.dimension} components, its files say {options.dimension}")
    except CannotLoad as error:
        pipe.say(Unusable(reason=str(error)))
        return
    from workers.memory.vectors.bulk import Bulk

    others = Bulk(model, pipe)
    load_s = time.monotonic() - began_at
    pipe.say(Ready(backend=backend, dimension=model.dimension, load_s=load_s, prepared=is_new))
    while (word := words.read()) is not None:
        job = decode_encode(word)
        if job.is_query:
            answer_query(model, job, pipe)
        else:
            others.add(job)


def main(argv: Sequence[str] | None = None) -> None:
    """Encode until the service is done with this process."""
    parser = argparse.ArgumentParser(prog="python -m workers.memory.vectors.encoder_process", description=__doc__)
    parser.add_argument("--parent", type=int, required=True, help="process id of the memory service")
    parser.add_argument("--bell", type=int, default=-1, help="eventfd that is rung for each word; -1 for none")
    args = parser.parse_args(argv)
    die_with_parent(args.parent)
    # Ctrl-C is for the service, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(Words(sys.stdin.buffer, args.bell), Pipe(take_stdout()))
    # Threads may be deep in native code; nothing here needs a farewell.
    os._exit(0)


if __name__ == "__main__":
    main()
