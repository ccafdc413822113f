"""What makes two errors the same: service, kind, message without its particulars, and the functions it went through. Pure.

    of(service, kind, message, traceback) -> "5f0c2b66a1d04e55"

A message is compared in its first 512 characters, in this order of replacements:

    addresses   http://..., user@host, 10.0.0.7:7000                 <address>
    quoted      'greeting', "greeting", `greeting`                   <text>
    paths       /var/lib/x, ~/x, ./x, C:\\x                          <path>
    hosts       pc2:7000                                             <address>
    ids         uuids; hex of 8 and more; mixed words of 20 and more <id>
    numbers     -3, 0x1f, 1,024.5, 12 ms, 4KiB, 90%                  <n>
    blanks      any run of them                                      one space

A Python traceback is compared by its frames, `file.py:function` without folders and line numbers, leaving out those of
Python itself and of installed packages where there are others; a function that calls itself counts once; the last 12. Of another sort of stack the last 8
lines are compared as messages are.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import blake2b
from typing import Final

# Characters of a message, and of the end of a traceback, that are looked at; the rest never told two errors apart, and
# the expressions below take 20 microseconds for most messages and 0.6 ms at worst (2026, one core).
_MESSAGE_MAX: Final = 512
_STACK_MAX: Final = 16_384

# Frames, and lines of a stack that is not Python's.
_FRAMES: Final = 12
_LINES: Final = 8

# Bytes of a fingerprint: 64 bits, so that among 10,000 groups two meet by chance once in some hundred billion times.
_DIGEST_BYTES: Final = 8

# Normalised texts remembered. A storm says the same few things; 4,096 messages take 2 MiB at most, 256 stacks 4.
_MESSAGES_REMEMBERED: Final = 4_096
_STACKS_REMEMBERED: Final = 256

_UNITS: Final = r"(?:[nuµm]?s|sec|seconds?|min|minutes?|h|hours?|d|days?|[kKMGT]?i?B|bytes?|%)"
_AMOUNT: Final = rf"\d+{_UNITS}(?!\w)"

# Each with a text without which it fits nowhere: most messages are spared most of the searches.
_RULES: Final = tuple(
    (needed, re.compile(expression), stand_in)
    for needed, expression, stand_in in (
        ("://", r"\b[A-Za-z][A-Za-z0-9+.-]{0,30}://[^\s'\"<>]+", "<address>"),
        ("", r"(?<!\w)'[^'\n]{0,300}'(?!\w)|\"[^\"\n]{0,300}\"|`[^`\n]{0,300}`", "<text>"),
        ("@", r"\b[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64})+", "<address>"),
        (".", r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d{1,5})?\b", "<address>"),
        ("[", r"\[[0-9a-fA-F:]{2,39}\](?::\d{1,5})?", "<address>"),
        (":\\", r"\b[A-Za-z]:\\[^\s:;,)\]}'\"]*", "<path>"),
        ("/", r"(?<![\w.>~])(?:~|\.{1,2})?/[^\s:;,)\]}'\"<>]+", "<path>"),
        (":", r"\b[A-Za-z][\w-]{0,62}(?:\.[\w-]{1,62}){0,8}:\d{2,5}\b", "<address>"),
        ("-", r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b", "<id>"),
        ("0", r"\b0[xX][0-9a-fA-F]+\b", "<n>"),
        ("", rf"\b(?!{_AMOUNT})(?=[a-fA-F]{{0,64}}\d)(?=\d{{0,64}}[a-fA-F])[0-9a-fA-F]{{8,}}\b", "<id>"),
        ("", rf"\b(?!{_AMOUNT})(?=[A-Za-z_-]{{0,64}}\d)(?=[\d_-]{{0,64}}[A-Za-z])[\w-]{{20,}}\b", "<id>"),
        ("", rf"(?:(?<![\w.])[+-])?\d+(?:[.,_]\d+)*(?:[eE][+-]?\d+)?(?:\s?{_UNITS}(?!\w))?", "<n>"),
        ("", r"\s+", " "),
    )
)

_FRAME: Final = re.compile(
    r'^\s*File "(?P<path>[^"\n]{1,1024})", line (?P<line>\d+), in (?P<function>[^\n]{1,256})$', re.M
)
# Code that somebody else wrote: installed packages, Python itself, what it makes at run time.
_OF_OTHERS: Final = re.compile(r"/(?:site|dist)-packages/|/lib/python\d|/python[\d.]*/lib/|^<", re.I)

# Where the path of a file of this project begins.
_PACKAGE: Final = re.compile(r"(?:^|/)(?:bus|broker|schemas|workers)/[^/]")


def of(service: str, kind: str, message: str, traceback: str = "") -> str:
    """The fingerprint, 16 hex digits."""
    parts = (service, kind, normal(message[:_MESSAGE_MAX]), stack(traceback[-_STACK_MAX:]))
    # Surrogates, which text from outside may hold, are bytes like others here.
    digest = blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES)
    return digest.hexdigest()


@lru_cache(_MESSAGES_REMEMBERED)
def normal(message: str) -> str:
    """A message without its particulars."""
    for needed, expression, stand_in in _RULES:
        if needed in message:
            message = expression.sub(stand_in, message)
    return message.strip()


@lru_cache(_STACKS_REMEMBERED)
def stack(traceback: str) -> str:
    """The functions of a traceback, a line each, the innermost last; empty without one."""
    frames = list(_FRAME.finditer(traceback))
    if not frames:
        lines = [normal(line[:_MESSAGE_MAX]) for line in traceback.splitlines() if line.strip()]
        return "\n".join(lines[-_LINES:])
    own = [frame for frame in frames if _is_own(frame)]
    named = [f"{_file(frame['path'])}:{frame['function'].strip()}" for frame in own or frames]
    unlike = [name for name, before in zip(named, ["", *named], strict=False) if name != before]
    return "\n".join(unlike[-_FRAMES:])


def where(traceback: str) -> str:
    """The innermost place outside of libraries, else any: `workers/memory/store.py:120 get`; empty without a traceback."""
    frames = list(_FRAME.finditer(traceback[-_STACK_MAX:]))
    if not frames:
        return ""
    frame = next((one for one in reversed(frames) if _is_own(one)), frames[-1])
    path = frame["path"].replace("\\", "/")
    inside = _PACKAGE.search(path)
    shown = path[inside.start() :].lstrip("/") if inside else _file(path)
    return f"{shown}:{frame['line']} {frame['function'].strip()}"


def _is_own(frame: re.Match[str]) -> bool:
    return _OF_OTHERS.search(frame["path"].replace("\\", "/")) is None


def _file(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2]
