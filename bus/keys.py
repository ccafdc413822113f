"""The keys of this machine, below OLYMPUS_HOME/keys: its own pair, and those of the machines it trusts.

    keys/secret          this machine's secret key in Z85, readable by its owner alone; the public key follows from it
    keys/trusted/NAME    public key of another machine in Z85
    keys/trusted/NAME.allowed    what that machine may do here (bus.permissions); without it, everything

Read anew each time, so that a key that is made, trusted or taken back counts from the next connection on.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bus import permissions, z85
from bus.permissions import BadPermissions, Permissions
from bus.private_file import write_private
from bus.settings import MACHINE_NAME, Settings

if TYPE_CHECKING:
    from bus.curve import KeyPair
    from bus.transport import MakeCodec

KEY_BYTES: Final = 32
_NAME: Final = re.compile(MACHINE_NAME)


class UnusableKey(ConnectionError):
    """A key is missing, malformed or open to others, so that no encrypted connection can be made; says what to do."""


class Keys:
    """The keys of one home."""

    def __init__(self, settings: Settings) -> None:
        self.folder = settings.path("keys")
        self._secret = self.folder / "secret"
        self._trusted = self.folder / "trusted"

    # This machine's own pair

    def own(self) -> KeyPair:
        """This machine's pair. Raises UnusableKey where there is none, or where others could have read it."""
        try:
            with self._secret.open(encoding="ascii") as file:
                status = os.fstat(file.fileno())
                text = file.read(1024).strip()
        except FileNotFoundError:
            raise UnusableKey(f"this machine has no key ({self._secret}): olympus keys make") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UnusableKey(f"{self._secret} cannot be read: {error}") from error
        if status.st_mode & 0o077:
            raise UnusableKey(
                f"{self._secret} is open to other users (mode {stat.S_IMODE(status.st_mode):o}), and so may be its key:"
                " make a new one with `olympus keys make --replace`, or say `chmod 600` where nobody else was here"
            )
        if status.st_uid not in (os.geteuid(), 0):
            raise UnusableKey(f"{self._secret} belongs to another user")
        from bus.curve import pair_of

        try:
            return pair_of(parse_key(text))
        except ValueError:
            # The reason would quote what may be most of a secret.
            raise UnusableKey(
                f"{self._secret} holds no key; one has 40 characters: olympus keys make --replace"
            ) from None

    def has_own(self) -> bool:
        """True when there is a secret key, usable or not."""
        return self._secret.exists()

    def make(self) -> KeyPair:
        """A new pair in place of the old. Its public key as text starts with a letter or digit: a shell takes it as it is.

        Raises OSError.
        """
        from bus.curve import key_pair

        pair = key_pair()
        while not z85.encode(pair.public)[0].isalnum():
            pair = key_pair()
        write_private(self._secret, z85.encode(pair.secret).encode() + b"\n")
        return pair

    # Other machines

    def trusted(self) -> dict[str, bytes]:
        """Public keys of trusted machines by name. Raises UnusableKey where others could have written them."""
        try:
            for folder in (self.folder, self._trusted):
                if folder.stat().st_mode & 0o022:
                    raise UnusableKey(f"{folder} can be written by other users: chmod 700 {folder}")
            named = [path for path in sorted(self._trusted.iterdir()) if _NAME.fullmatch(path.name)]
        except FileNotFoundError:
            return {}
        except UnusableKey:
            raise
        except OSError as error:
            raise _unreadable(self._trusted, error) from error
        found = {path.name: _read_public(path) for path in named}
        return {name: public for name, public in found.items() if public is not None}

    def trust(self, name: str, public: bytes) -> None:
        """Trust the machine `name` by its public key from now on. Raises OSError."""
        write_private(self._trusted / name, z85.encode(public).encode() + b"\n")

    def untrust(self, name: str) -> bool:
        """Trust it no more; False when it was not trusted."""
        try:
            (self._trusted / name).unlink()
        except FileNotFoundError:
            return False
        # After the key: in between it has fewer rights, not more.
        self._permissions_file(name).unlink(missing_ok=True)
        return True

    def permissions(self, name: str) -> Permissions | None:
        """What the trusted machine `name` may do here; None for everything. Raises UnusableKey for a file that says nothing."""
        path = self._permissions_file(name)
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                text = file.read(permissions.MAX_BYTES + 1)
        except FileNotFoundError as error:
            if path.is_symlink():
                # It says what is allowed, elsewhere; everything is for a machine of which nothing is said.
                raise _unreadable(path, error) from error
            return None
        except OSError as error:
            raise _unreadable(path, error) from error
        if mode & 0o022:
            raise UnusableKey(f"{path} can be written by other users: chmod 600 {path}")
        if len(text) > permissions.MAX_BYTES:
            raise UnusableKey(f"{path} is larger than {permissions.MAX_BYTES} bytes")
        try:
            return permissions.parse(text.decode())
        except (BadPermissions, UnicodeDecodeError) as error:
            raise UnusableKey(f"{path}: {error}") from error

    def allow(self, name: str, allowed: Permissions | None) -> None:
        """Let the machine `name` do that from now on; None for everything. Raises OSError."""
        path = self._permissions_file(name)
        if allowed is None:
            path.unlink(missing_ok=True)
        else:
            write_private(path, permissions.render(name, allowed).encode())

    def _permissions_file(self, name: str) -> Path:
        # No name of a machine has a dot, so that it is none of the keys.
        return self._trusted / f"{name}.allowed"

    def of_server(self, server_key: str) -> bytes:
        """The public key that `bus.server_key` means: a trusted name, or the key itself. Raises UnusableKey."""
        if not _NAME.fullmatch(server_key):
            return parse_key(server_key)
        found = self.trusted().get(server_key)
        if found is None:
            raise UnusableKey(
                f"no key of {server_key!r} is trusted here, which bus.server_key names: olympus keys trust {server_key} KEY"
                " (there, `olympus keys export` prints it)"
            )
        return found

    # Codecs of encrypted connections

    def client_codec(self, server_key: str) -> MakeCodec:
        """For a connection to the broker that owns `server_key`. Raises UnusableKey."""
        own, expected = self.own(), self.of_server(server_key)
        from bus.curve import CurveClient

        return partial(CurveClient, own=own, server_key=expected)

    def server_codec(self, admits: Callable[[bytes], bool]) -> MakeCodec:
        """For the broker's encrypted ports. Raises UnusableKey."""
        own = self.own()
        from bus.curve import CurveServer

        return partial(CurveServer, own=own, admits=admits)


def parse_key(text: str) -> bytes:
    """A key from its 40 characters of Z85. Raises ValueError."""
    key = z85.decode(text)
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key has 40 characters, this has {len(text)}")
    return key


def _read_public(path: Path) -> bytes | None:
    """The key at `path`, None where it was taken back meanwhile."""
    try:
        return parse_key(path.read_text(encoding="ascii").strip())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise UnusableKey(f"{path} holds no public key ({error}): remove it, or trust the machine anew") from error


def _unreadable(path: Path, error: OSError) -> UnusableKey:
    return UnusableKey(f"{path} cannot be read: {error.strerror}")
