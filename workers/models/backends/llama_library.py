"""Loads llama-cpp-python's low-level module without the rest of the package, and routes llama.cpp's log.

`import llama_cpp` also imports the high-level classes and numpy: 0.15 s and 40 MB against 0.03 s and 17 MB for the
ctypes declarations alone, and a runner needs nothing else. So the package's own `__init__` is left out by putting an
empty module of that name, with the right search path, in its place for the time of the import.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import importlib.util
import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

log = logging.getLogger("olympus.models.llama")

# ggml_log_level in ggml.h; 5 continues the line before.
_LEVELS: Final = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}
_CONTINUED: Final = 5


class LibraryMissing(Exception):
    """llama-cpp-python is not installed, or its native library cannot be loaded; the message says what to do."""


def load_library() -> Any:
    """The module `llama_cpp.llama_cpp`. Raises LibraryMissing."""
    is_standing_in = "llama_cpp" not in sys.modules
    if is_standing_in:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None or spec.submodule_search_locations is None:
            raise LibraryMissing("llama-cpp-python is not installed; install the extra 'models'")
        package = ModuleType("llama_cpp")
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = spec
        sys.modules["llama_cpp"] = package
    try:
        return importlib.import_module("llama_cpp.llama_cpp")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise LibraryMissing(f"llama-cpp-python does not load: {error}") from error
    finally:
        # Whoever imports the package later gets the whole one, around the module that is loaded now.
        if is_standing_in:
            del sys.modules["llama_cpp"]


class LogRouter:
    """Sends llama.cpp's log to `logging` at debug, so that it never floods stderr, and keeps its last error lines.

    listener: called with each line besides, for work that tells its progress in the log.
    """

    def __init__(self, library: Any) -> None:
        self.errors: list[str] = []
        self.listener: Callable[[str], None] | None = None
        self._line = ""
        self._level = 0
        self._callback = library.llama_log_callback(self._receive)
        library.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _receive(self, level: int, text: bytes, _user: Any) -> None:
        if level != _CONTINUED:
            self._level = level
        self._line += text.decode("utf-8", "replace")
        if not self._line.endswith("\n"):
            return
        line, self._line = self._line.strip(), ""
        if _LEVELS.get(self._level) == logging.ERROR:
            self.errors = [*self.errors[-7:], line]
        if line:
            log.debug(line)
            if self.listener is not None:
                self.listener(line)


@functools.lru_cache(maxsize=1)
def log_router(library: Any) -> LogRouter:
    """The process's one router: llama.cpp keeps a single log callback, which must not be freed."""
    return LogRouter(library)


def reason_of_failure(errors: list[str], fallback: str) -> str:
    """The line of llama.cpp's log that says what is wrong, without the function name in front of it."""
    telling = [line for line in errors if "error loading model" in line] or errors
    return telling[0].partition(": ")[2] or telling[0] if telling else fallback


def tokenize(library: Any, vocab: Any, text: str, *, with_special: bool) -> list[int]:
    """Token ids of `text`, nothing added. With `with_special`, the text of a control token becomes that token."""
    encoded = text.encode("utf-8", "replace")
    room = len(encoded) + 8
    tokens = (library.llama_token * room)()
    count = library.llama_tokenize(vocab, encoded, len(encoded), tokens, room, False, with_special)
    if count < 0:
        tokens = (library.llama_token * -count)()
        count = library.llama_tokenize(vocab, encoded, len(encoded), tokens, -count, False, with_special)
    return list(tokens[:count])
