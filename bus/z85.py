"""Keys as text: Z85, four bytes in five printable characters. Source: ZeroMQ RFC 32/Z85. Knows nothing of keys."""

from __future__ import annotations

from typing import Final

ALPHABET: Final = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"

_VALUES: Final = {character: value for value, character in enumerate(ALPHABET)}


def encode(data: bytes) -> str:
    """Text of `data`, whose length is a multiple of four."""
    text = []
    for at in range(0, len(data), 4):
        rest = int.from_bytes(data[at : at + 4], "big")
        text.append("".join(ALPHABET[rest // 85**place % 85] for place in (4, 3, 2, 1, 0)))
    return "".join(text)


def decode(text: str) -> bytes:
    """What `encode` made text of. Raises ValueError for any other text."""
    if len(text) % 5:
        raise ValueError(f"{len(text)} characters; Z85 has a multiple of five")
    data = bytearray()
    for at in range(0, len(text), 5):
        value = 0
        for character in text[at : at + 5]:
            if character not in _VALUES:
                raise ValueError(f"{character!r} is no character of Z85")
            value = value * 85 + _VALUES[character]
        if value >= 1 << 32:
            raise ValueError(f"{text[at : at + 5]!r} stands for more than four bytes")
        data += value.to_bytes(4, "big")
    return bytes(data)
