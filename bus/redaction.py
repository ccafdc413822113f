"""Keeps secrets out of what people read: log lines, error reports, shown settings.

A value is a secret by the name it goes under (`password`, `api_key`, ...) or by its shape: a JWT, a bearer token, who
signs in within an address. What a person put into a sentence of their own is not found.
"""

from __future__ import annotations

import re
from typing import Any, Final

HIDDEN: Final = "(hidden)"

# Not `tokens`: those are counted.
_NAME: Final = re.compile(
    r"((secret|passwd|password|passphrase|api_?key|private(_?key)?|authorization|cookie|credential)s?|token)$", re.I
)

# Under these names stand addresses whose path lets in whoever knows it, as Slack's and ntfy's do.
_ADDRESS_NAME: Final = re.compile(r"webhooks?$", re.I)
_BEHIND_HOST: Final = re.compile(r"(?<=://)([^/?#]*)[/?#].+")

# Searching for the shapes costs ten times as much as looking whether one of these is there at all.
_SIGNS: Final = ("eyj", "://", "bearer", "passw", "secret", "token", "api")

# Three parts of base64url, the first of them a JSON object (RFC 7519).
_JWT: Final = re.compile(r"(?<![\w-])eyJ[\w-]{6,}\.[\w-]{4,}\.[\w-]*")
_BEARER: Final = re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}")
_IN_ADDRESS: Final = re.compile(r"(?<=://)[^\s/\"'<>]+(?=@)")
# `password=x`, `'password': 'x'`, `"password": "x"`; not `token: is missing`, which says nothing.
_NAMED: Final = re.compile(
    r"(?i)((?:secret|passwd|password|passphrase|token|api_?key)[\"']?\s*[=:]\s*)"
    r"(?!\(hidden\))(?:\"(?:\\.|[^\"\\])*\"?|'(?:\\.|[^'\\])*'?|(?<==)[^\s&,;\"')\]}]+)"
)

# How deep values within values are looked through; what lies deeper is shown as text.
_DEPTH: Final = 4


def redacted(text: str) -> str:
    """`text` without what has the shape of a secret."""
    lower = text.lower()
    if not any(sign in lower for sign in _SIGNS):
        return text
    text = _JWT.sub(HIDDEN, text)
    text = _BEARER.sub(rf"\1{HIDDEN}", text)
    text = _IN_ADDRESS.sub(HIDDEN, text)
    return _NAMED.sub(rf"\1{HIDDEN}", text)


def is_secret(name: str) -> bool:
    """True where the name itself says that nobody may see the value."""
    return _NAME.search(name) is not None


def shown(name: str, value: Any, depth: int = _DEPTH) -> Any:
    """What may be shown of `value`, which goes under `name`; numbers always, texts and what holds them if no secret."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if not value:
        return value
    if isinstance(value, str | bytes) and is_secret(name):
        return HIDDEN
    if isinstance(value, str):
        if _ADDRESS_NAME.search(name):
            value = _BEHIND_HOST.sub(rf"\1/{HIDDEN}", value)
        return redacted(value)
    if depth and isinstance(value, dict):
        return {key: shown(str(key), inner, depth - 1) for key, inner in value.items()}
    if depth and isinstance(value, list | tuple):
        return [shown(name, inner, depth - 1) for inner in value]
    return redacted(str(value))
