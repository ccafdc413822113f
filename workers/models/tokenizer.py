"""The process that counts tokens, `python -m workers.models.tokenizer --parent PID`: vocabularies without weights.

A crash of native code on a broken file takes this process with it and nothing else. It answers one request after the
other and ends with its stdin.

    service -> tokenizer   length (4 bytes, big endian), msgpack TokenizeTexts     stdin
    tokenizer -> service   length (4 bytes, big endian), msgpack TextTokens        stdout
"""

from __future__ import annotations

import argparse
import os
import struct
import sys
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, BinaryIO, Final

import msgspec

from bus.parent import die_with_parent
from workers.models.backends.llama_library import (
    LibraryMissing,
    load_library,
    log_router,
    reason_of_failure,
    tokenize,
)

# Vocabularies held at once: a large one is some 60 MB.
VOCABULARIES: Final = 2

LENGTH: Final = struct.Struct(">I")

_Key = tuple[str, int, int]


class TokenizeTexts(msgspec.Struct, frozen=True, kw_only=True):
    """Tokenize `texts` with the vocabulary of the GGUF file at `path`."""

    path: str
    texts: list[str]
    with_tokens: bool


class TextTokens(msgspec.Struct, frozen=True, kw_only=True):
    """The answer. `error` says why there is none; `is_missing` that the library is not installed."""

    counts: list[int] = []
    tokens: list[list[int]] | None = None
    error: str = ""
    is_missing: bool = False


class _Failed(Exception):
    """The vocabulary cannot be loaded; the message is llama.cpp's own reason."""


class Vocabularies:
    """The vocabularies used last. A file that was replaced is read again."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._router = log_router(library)
        self._models: OrderedDict[_Key, Any] = OrderedDict()

    def of(self, path: str) -> Any:
        """The vocabulary of a file. Raises _Failed, OSError."""
        stat = os.stat(path)
        key = (path, stat.st_size, stat.st_mtime_ns)
        if key not in self._models:
            self._models[key] = self._load(path)
            while len(self._models) > VOCABULARIES:
                _, oldest = self._models.popitem(last=False)
                self._library.llama_model_free(oldest)
        self._models.move_to_end(key)
        return self._library.llama_model_get_vocab(self._models[key])

    def _load(self, path: str) -> Any:
        self._router.errors = []
        parameters = self._library.llama_model_default_params()
        parameters.vocab_only = True
        parameters.n_gpu_layers = 0
        model = self._library.llama_model_load_from_file(os.fsencode(path), parameters)
        if not model:
            raise _Failed(reason_of_failure(self._router.errors, "llama.cpp gave no reason"))
        return model


def _answer(library: Any, vocabularies: Vocabularies, request: TokenizeTexts) -> TextTokens:
    try:
        vocab = vocabularies.of(request.path)
    except _Failed as error:
        return TextTokens(error=str(error))
    except OSError as error:
        return TextTokens(error=error.strerror or str(error))
    tokens = [tokenize(library, vocab, text, with_special=False) for text in request.texts]
    return TextTokens(counts=[len(one) for one in tokens], tokens=tokens if request.with_tokens else None)


def _serve(source: BinaryIO, sink: BinaryIO) -> None:
    decode = msgspec.msgpack.Decoder(TokenizeTexts).decode
    vocabularies: Vocabularies | None = None
    library: Any = None
    while len(head := source.read(LENGTH.size)) == LENGTH.size:
        request = decode(source.read(LENGTH.unpack(head)[0]))
        try:
            if vocabularies is None:
                library = load_library()
                library.llama_backend_init()
                vocabularies = Vocabularies(library)
            answer = _answer(library, vocabularies, request)
        except LibraryMissing as error:
            answer = TextTokens(error=str(error), is_missing=True)
        body = msgspec.msgpack.encode(answer)
        sink.write(LENGTH.pack(len(body)) + body)
        sink.flush()


def main(argv: Sequence[str] | None = None) -> None:
    """Answer until stdin ends."""
    parser = argparse.ArgumentParser(prog="python -m workers.models.tokenizer", description=__doc__)
    parser.add_argument("--parent", type=int, required=True, help="process id of the model service")
    die_with_parent(parser.parse_args(argv).parent)
    # Whatever a library prints goes to stderr; stdout is the pipe to the service.
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _serve(sys.stdin.buffer, sink)
    sink.flush()
    # Freeing vocabularies in good order costs time that nobody gains by.
    os._exit(0)


if __name__ == "__main__":
    main()
