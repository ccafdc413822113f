"""The keys that sign access tokens: one file each below OLYMPUS_HOME/auth/keys, made when first needed.

    000001-9f3a2c7d.pem        an Ed25519 private key (EdDSA)
    000002-51bb0e44.secret     64 random bytes (HS256)

A key's name is its `kid`. The highest number signs; the others only verify. The algorithm belongs to the key, by the
kind of its file: what a token's own header says of it is never believed (RFC 8725, section 3.1).
"""

from __future__ import annotations

import re
import secrets
import threading
from pathlib import Path
from typing import Any, Final, NamedTuple

from bus.private_file import write_private
from schemas.errors import Internal

_SUFFIXES: Final = {"EdDSA": ".pem", "HS256": ".secret"}
_ALGORITHMS: Final = {suffix: algorithm for algorithm, suffix in _SUFFIXES.items()}
_KID: Final = re.compile(r"(\d{6})-[0-9a-f]{8}")

# Bytes of an HS256 secret: the block of SHA-256; it must not be below 32 (RFC 7518, section 3.2).
_SECRET_BYTES: Final = 64


class Key(NamedTuple):
    """One key; `signing` and `verifying` are what the JWT library takes."""

    kid: str
    algorithm: str
    signing: Any
    verifying: Any


class KeyRing:
    """The keys of one home, for any thread. Reads and writes files, small ones and rarely. Raises Internal."""

    def __init__(self, folder: Path, algorithm: str) -> None:
        self._folder = folder
        self._algorithm = algorithm
        self._keys: dict[str, Key] = {}
        self._lock = threading.Lock()

    def signing(self) -> Key:
        """The key that signs now, made if there is none of the algorithm that is set."""
        with self._lock:
            self._load()
            newest = self._newest()
            if newest is None or newest.algorithm != self._algorithm:
                newest = self._make()
            return newest

    def find(self, kid: str) -> Key | None:
        """The key of that name, if this home has it."""
        with self._lock:
            if kid not in self._keys and _KID.fullmatch(kid):
                self._load()
            return self._keys.get(kid)

    def rotate(self) -> Key:
        """Make a key that signs from now on."""
        with self._lock:
            self._load()
            return self._make()

    def _make(self) -> Key:
        newest = self._newest()
        number = int(newest.kid.partition("-")[0]) + 1 if newest is not None else 1
        kid = f"{number:06}-{secrets.token_hex(4)}"
        path = self._folder / f"{kid}{_SUFFIXES[self._algorithm]}"
        try:
            write_private(path, _new_ed25519() if self._algorithm == "EdDSA" else secrets.token_bytes(_SECRET_BYTES))
        except OSError as error:
            raise Internal(f"no key can be written to {self._folder}: {error.strerror or error}") from error
        self._keys[kid] = _read(path)
        return self._keys[kid]

    def keep(self, kids: set[str]) -> list[str]:
        """Delete every key that is not among `kids` and does not sign; the names of those left, in order."""
        with self._lock:
            self._load()
            newest = self._newest()
            for kid, key in list(self._keys.items()):
                if kid in kids or key is newest:
                    continue
                (self._folder / f"{kid}{_SUFFIXES[key.algorithm]}").unlink(missing_ok=True)
                del self._keys[kid]
            return sorted(self._keys)

    def _newest(self) -> Key | None:
        return self._keys[max(self._keys)] if self._keys else None

    def _load(self) -> None:
        paths = {
            path.stem: path
            for path in (self._folder.iterdir() if self._folder.is_dir() else ())
            if _KID.fullmatch(path.stem) and path.suffix in _ALGORITHMS
        }
        for kid in self._keys.keys() - paths.keys():
            del self._keys[kid]
        for kid in paths.keys() - self._keys.keys():
            self._keys[kid] = _read(paths[kid])


def _new_ed25519() -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _read(path: Path) -> Key:
    algorithm = _ALGORITHMS[path.suffix]
    try:
        content = path.read_bytes()
        if algorithm == "HS256":
            if len(content) < _SECRET_BYTES:
                raise ValueError(f"it has {len(content)} bytes, not {_SECRET_BYTES}")
            return Key(path.stem, algorithm, content, content)
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        private = load_pem_private_key(content, None)
        if not isinstance(private, Ed25519PrivateKey):
            raise ValueError("it is no Ed25519 key")
    except (OSError, ValueError, TypeError) as error:
        raise Internal(f"the key {path} cannot be used ({error}); move it away to sign with a new one") from error
    return Key(path.stem, algorithm, private, private.public_key())
