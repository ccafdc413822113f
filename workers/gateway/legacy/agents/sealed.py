"""Seals what belongs to a token under that token: the records hold it, and only whoever brings the token reads it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from typing import Any

import msgspec


def record_key(token: str) -> str:
    """Where the record of a token lies. A token is random, so that a plain hash cannot be reversed."""
    return hashlib.sha256(b"key " + token.encode(errors="replace")).hexdigest()


async def seal(token: str, value: Any) -> str:
    """The value as text that only `token` opens."""
    return await asyncio.to_thread(_seal, token, msgspec.json.encode(value))


async def unseal(token: str, sealed: str) -> Any:
    """What was sealed under `token`; None where it was sealed under another."""
    opened = await asyncio.to_thread(_unseal, token, sealed)
    return None if opened is None else msgspec.json.decode(opened)


# In a thread, with imports of their own: most homes never sign in here. SecretBox is XSalsa20-Poly1305, and puts a random
# nonce of 24 bytes before what it seals.


def _seal(token: str, plain: bytes) -> str:
    from nacl.secret import SecretBox

    return base64.b64encode(bytes(SecretBox(_key(token)).encrypt(plain))).decode()


def _unseal(token: str, sealed: str) -> bytes | None:
    from nacl.exceptions import CryptoError
    from nacl.secret import SecretBox

    try:
        return bytes(SecretBox(_key(token)).decrypt(base64.b64decode(sealed)))
    except (CryptoError, ValueError):
        return None


def _key(token: str) -> bytes:
    return hashlib.sha256(b"seal " + token.encode(errors="replace")).digest()
