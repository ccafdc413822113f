"""CurveZMQ as a pure codec: the connection is encrypted, and each end knows the other's key; it owns no socket or file.

Source: ZeroMQ RFC 26/CurveZMQ, over the framing of RFC 37; wire-compatible with any libzmq peer. Imported only where
encryption is wanted: PyNaCl takes 10 ms to import. A client has the pair (c, C), a server (s, S), and each connection
gives both a pair of its own, (c', C') and (s', S'), which is what everything after the handshake is encrypted with.

    HELLO      version 01 00 | zeros 72 | C' 32 | nonce 8 | box of zeros 64, C' to S                  client
    WELCOME    nonce 16 | box of (S' 32, cookie 96), S to C'                                          server
    INITIATE   cookie 96 | nonce 8 | box of (C 32, nonce 16, vouch 80, metadata), C' to S'            client
    READY      nonce 8 | box of metadata, S' to C'                                                    server
    MESSAGE    nonce 8 | box of (flags 1, payload), C' and S'; flags 1 MORE, 2 COMMAND                both
    cookie     nonce 16 | secret box of (C', s'), its key known to the server alone
    vouch      box of (C', S), C to S': the client that opened the connection is the owner of C

The nonces of 8 bytes count what one end has sent; one that does not grow ends the connection. What is not sent in the
state where it belongs, or does not open, ends it too.
"""

from __future__ import annotations

import abc
import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping
from typing import ClassVar, Final, NamedTuple, NoReturn

from nacl import bindings
from nacl._sodium import ffi, lib
from nacl.exceptions import CryptoError

from bus import zmtp
from bus.pages import room
from bus.zmtp import ProtocolError
from schemas.envelope import Buffer
from schemas.limits import MAX_BODY_BYTES, MAX_FRAMES

KEY_BYTES: Final = 32

_MAC_BYTES: Final = 16
_MESSAGE: Final = b"\x07MESSAGE"

# What a MESSAGE holds before its box, and before the payload in it: name, nonce, authenticator, flags.
_BOX_AT: Final = len(_MESSAGE) + 8
_PLAIN_AT: Final = _BOX_AT + _MAC_BYTES
_OVERHEAD: Final = _PLAIN_AT + 1

_MORE: Final = 1
_COMMAND: Final = 2
_LAST_FLAGS: Final = b"\0"
_MORE_FLAGS: Final = b"\1"

_HELLO_BYTES: Final = 194
_WELCOME_BYTES: Final = 160
_COOKIE_BYTES: Final = 96
_VOUCH_BYTES: Final = 80

# A refused client is told this status, which libzmq reports as ZMQ_EVENT_HANDSHAKE_FAILED_AUTH (RFC 27, section 3.2).
_DENIED: Final = b"400"

# The top bit of a key's last byte. No public key has it, and agreeing on a secret passes over it (RFC 7748, section 5),
# so that of all bits of HELLO only this one could be changed on its way unseen.
_UNREAD_BIT: Final = 0x80

# Said to a client whose HELLO does not open. RFC 26 allows ERROR as the answer; libzmq only closes the connection.
_OTHER_KEY: Final = b"not the server that this key belongs to"


class KeyPair(NamedTuple):
    """A long-term identity: 32 bytes each."""

    public: bytes
    secret: bytes


def key_pair() -> KeyPair:
    """A new one, at random."""
    return KeyPair(*bindings.crypto_box_keypair())


def pair_of(secret: bytes) -> KeyPair:
    """The pair of a secret key of 32 bytes."""
    return KeyPair(bindings.crypto_scalarmult_base(secret), secret)


def is_public_key(public: bytes) -> bool:
    """False for 32 bytes that agree on the same secret with everybody: points of low order (RFC 7748, section 6.1)."""
    try:
        _shared(public, bindings.crypto_box_keypair()[1])
    except ProtocolError:
        return False
    return True


def fingerprint(public: bytes) -> str:
    """A key in 19 characters that a person can compare: the start of its SHA-256."""
    digest = hashlib.sha256(public).hexdigest()
    return "-".join(digest[at : at + 4] for at in range(0, 16, 4))


class CurveCodec(zmtp.Codec, abc.ABC):
    """What both ends do alike: the messages after the handshake. Used as zmtp.Codec is, through its two subclasses."""

    __slots__ = (
        "_expects",
        "_key",
        "_own",
        "_parts",
        "_parts_bytes",
        "_peer_nonce",
        "_sent_nonce",
        "_skipped_bytes",
        "_transient",
        "_transient_peer",
    )

    mechanism: ClassVar[bytes] = b"CURVE"
    is_secure: ClassVar[bool] = True

    # Starts of the nonces of MESSAGE, ours and the peer's.
    _sends: ClassVar[bytes]
    _receives: ClassVar[bytes]

    def __init__(
        self,
        socket_type: bytes,
        *,
        own: KeyPair,
        properties: Mapping[str, bytes] = {},
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        super().__init__(socket_type, properties=properties, max_body_bytes=max_body_bytes)
        self.encode = self._encrypt
        self._own = own
        self._transient = key_pair()
        self._transient_peer = b""
        self._expects = b""
        self._key = b""
        self._sent_nonce = 0
        self._peer_nonce = 0
        # Of the message that is being received: its frames so far, and what was claimed when it grew too large.
        self._parts: list[Buffer] = []
        self._parts_bytes = 0
        self._skipped_bytes = 0

    # Receiving

    def feed(self, data: bytes) -> list[list[Buffer]]:
        """Complete messages after `data`. Raises ProtocolError; the connection must then be closed."""
        messages: list[list[Buffer]] = []
        while True:
            skipped = len(self.oversize)
            received = super().feed(data)
            # What was skipped came after all that was received, and opening that may find more to skip.
            last = self.oversize.pop() if len(self.oversize) > skipped else None
            if received:
                messages += self._opened(received)
            if last is None:
                return messages
            self._note_skipped(last[1])
            data = b""

    def large_filled(self, count: int) -> list[list[Buffer]]:
        """Say that `count` bytes were received into `large`; returns the message when it is complete."""
        received = super().large_filled(count)
        return self._opened(received) if received else []

    def _opened(self, received: list[list[Buffer]]) -> list[list[Buffer]]:
        messages: list[list[Buffer]] = []
        for frames in received:
            if len(frames) != 1:
                raise ProtocolError("an encrypted frame that continues in clear")
            flags, payload = self._open(frames[0])
            if flags & ~(_MORE | _COMMAND):
                raise ProtocolError(f"reserved flag bits are set in the flags {flags:#04x} of a MESSAGE")
            if flags & _COMMAND:
                if flags & _MORE or len(payload) > zmtp.MAX_COMMAND_BYTES:
                    raise ProtocolError(f"an encrypted command of {len(payload)} bytes")
                super()._on_command(bytes(payload))
            else:
                self._gather(payload, messages, is_last=not flags & _MORE)
        return messages

    def _gather(self, payload: Buffer, messages: list[list[Buffer]], *, is_last: bool) -> None:
        size = len(payload) + self._parts_bytes
        if self._skipped_bytes or size > self._limit or len(self._parts) >= MAX_FRAMES:
            # As zmtp.Codec skips it, which sees only one frame at a time here.
            self._skipped_bytes += size + 1
            self._parts_bytes = 0
        else:
            self._parts.append(payload)
            self._parts_bytes = size
        if not is_last:
            return
        parts, self._parts, self._parts_bytes = self._parts, [], 0
        if self._skipped_bytes:
            self.oversize.append((parts, self._skipped_bytes))
            self._skipped_bytes = 0
        else:
            messages.append(parts)

    def _note_skipped(self, size: int) -> None:
        """A frame that was too large to be taken in, and so to be opened, counts as the last of its message.

        It is the last in every form of message but one, a plain request with headers: their frame is then refused too.
        """
        self.oversize.append((self._parts, size + self._parts_bytes + self._skipped_bytes))
        self._parts, self._parts_bytes, self._skipped_bytes = [], 0, 0

    def _open(self, frame: Buffer) -> tuple[int, Buffer]:
        """Flags and payload of one MESSAGE."""
        size = len(frame) - _BOX_AT
        head = bytes(frame[:_BOX_AT])
        if size <= _MAC_BYTES or not head.startswith(_MESSAGE):
            raise ProtocolError("a message that is not encrypted")
        nonce = self._receives + self._counted(head[-8:])
        # A bare address: `frame` keeps it alive.
        box = ffi.from_buffer(frame) + _BOX_AT
        if isinstance(frame, memoryview):
            # In place: a large frame is neither copied nor held twice.
            if lib.crypto_box_open_easy_afternm(box + _MAC_BYTES, box, size, nonce, self._key):
                raise ProtocolError(_FORGED)
            return frame[_PLAIN_AT], frame[_OVERHEAD:]
        plain = ffi.new("unsigned char[]", size - _MAC_BYTES)
        if lib.crypto_box_open_easy_afternm(plain, box, size, nonce, self._key):
            raise ProtocolError(_FORGED)
        return plain[0], ffi.buffer(plain)[1:]

    def _counted(self, nonce: bytes) -> bytes:
        count = int.from_bytes(nonce, "big")
        if count <= self._peer_nonce:
            raise ProtocolError("a repeated or reordered message: its nonce does not grow")
        self._peer_nonce = count
        return nonce

    # Sending

    def _encrypt(self, frames: list[Buffer], out: list[Buffer]) -> int:
        total = 0
        last = len(frames) - 1
        for index, frame in enumerate(frames):
            total += self._seal(_LAST_FLAGS if index == last else _MORE_FLAGS, frame, out)
        return total

    def ping(self, context: bytes = b"") -> bytes:
        """A PING as it is sent now; the peer answers PONG with the same context (at most 16 bytes)."""
        return self._sealed_command(b"PING", zmtp.ping_data(context))

    def _say(self, name: bytes, data: bytes) -> None:
        self.outgoing += self._sealed_command(name, data) if self.is_ready else zmtp.command(name, data)

    def _sealed_command(self, name: bytes, data: bytes) -> bytes:
        out: list[Buffer] = []
        self._seal(bytes((_COMMAND,)), bytes((len(name),)) + name + data, out)
        return b"".join(out)

    def _seal(self, flags: bytes, payload: Buffer, out: list[Buffer]) -> int:
        if not self._key:
            # The cipher reads 32 bytes from wherever it is told to.
            raise RuntimeError("nothing can be encrypted before the handshake")
        nonce = self._count()
        size = _OVERHEAD + len(payload)
        head = zmtp.frame_head(size)
        if size < zmtp.LARGE_FRAME_BYTES:
            box = ffi.new("unsigned char[]", size - _BOX_AT)
            plain = b"".join((flags, payload))
            lib.crypto_box_easy_afternm(box, plain, len(plain), self._sends + nonce, self._key)
            out.append(head + _MESSAGE + nonce)
            out.append(ffi.buffer(box)[:])
            return len(head) + size
        whole = room(size)
        whole[:_OVERHEAD] = b"".join((_MESSAGE, nonce, bytes(_MAC_BYTES), flags))
        whole[_OVERHEAD:] = payload
        start = ffi.from_buffer(whole, require_writable=True)
        lib.crypto_box_easy_afternm(
            start + _BOX_AT, start + _PLAIN_AT, size - _PLAIN_AT, self._sends + nonce, self._key
        )
        out.append(head)
        out.append(whole)
        return len(head) + size

    def _count(self) -> bytes:
        self._sent_nonce += 1
        return self._sent_nonce.to_bytes(8, "big")

    # The handshake

    def _on_command(self, body: bytes) -> None:
        name_end = 1 + body[0] if body else 0
        name, data = body[1:name_end], body[name_end:]
        if self.is_ready:
            raise ProtocolError("a command that is not encrypted")
        if name == b"ERROR":
            self._on_error(data[1:])
        if name != self._expects:
            raise ProtocolError(f"command {name[:16]!r} where {self._expects.decode()} belongs")
        self._on_step(data)

    def _on_error(self, reason: bytes) -> NoReturn:
        raise ProtocolError(f"the peer refused the connection: {zmtp.printable(reason)}")

    @abc.abstractmethod
    def _on_step(self, data: bytes) -> None:
        """The command that `_expects` names came."""

    def _share_keys(self) -> None:
        self._key = _shared(self._transient_peer, self._transient.secret)


class CurveServer(CurveCodec):
    """The end that listens. `admits` says of a client's long-term key whether it may come in; others are refused."""

    __slots__ = ("_admits", "_cookie_key")

    as_server: ClassVar[bool] = True
    _sends: ClassVar[bytes] = b"CurveZMQMESSAGES"
    _receives: ClassVar[bytes] = b"CurveZMQMESSAGEC"

    def __init__(
        self,
        socket_type: bytes,
        *,
        own: KeyPair,
        admits: Callable[[bytes], bool],
        properties: Mapping[str, bytes] = {},
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        super().__init__(socket_type, own=own, properties=properties, max_body_bytes=max_body_bytes)
        self._admits = admits
        self._cookie_key = secrets.token_bytes(32)

    def _begin_handshake(self) -> None:
        self._expects = b"HELLO"

    def _on_step(self, data: bytes) -> None:
        if self._expects == b"HELLO":
            self._on_hello(data)
        else:
            self._on_initiate(data)

    def _on_hello(self, data: bytes) -> None:
        if len(data) != _HELLO_BYTES or data[:2] != b"\1\0":
            raise ProtocolError(f"a HELLO of {len(data)} bytes; version 1.0 has {_HELLO_BYTES}")
        self._transient_peer = data[74:106]
        nonce = self._counted(data[106:114])
        try:
            key = _shared(self._transient_peer, self._own.secret)
            hello = _unbox(data[114:], b"CurveZMQHELLO---" + nonce, key)
        except ProtocolError:
            self._say(b"ERROR", bytes((len(_OTHER_KEY),)) + _OTHER_KEY)
            raise ProtocolError("the client expects a server with another key") from None
        if any(hello):
            raise ProtocolError("a HELLO whose box holds something")
        if self._transient_peer[-1] & _UNREAD_BIT:
            raise ProtocolError("a HELLO whose key has its top bit set, which no key has")
        cookie_nonce, welcome_nonce = secrets.token_bytes(16), secrets.token_bytes(16)
        cookie = cookie_nonce + bindings.crypto_secretbox_easy(
            self._transient_peer + self._transient.secret, b"COOKIE--" + cookie_nonce, self._cookie_key
        )
        welcome = bindings.crypto_box_easy_afternm(self._transient.public + cookie, b"WELCOME-" + welcome_nonce, key)
        self._say(b"WELCOME", welcome_nonce + welcome)
        self._expects = b"INITIATE"

    def _on_initiate(self, data: bytes) -> None:
        if len(data) < _COOKIE_BYTES + 8 + _MAC_BYTES + KEY_BYTES + 16 + _VOUCH_BYTES:
            raise ProtocolError(f"an INITIATE of {len(data)} bytes is cut short")
        self._check_cookie(data[:_COOKIE_BYTES])
        self._share_keys()
        nonce = self._counted(data[_COOKIE_BYTES : _COOKIE_BYTES + 8])
        initiate = _unbox(data[_COOKIE_BYTES + 8 :], b"CurveZMQINITIATE" + nonce, self._key)
        client, vouch_nonce = initiate[:KEY_BYTES], initiate[KEY_BYTES : KEY_BYTES + 16]
        vouch_end = KEY_BYTES + 16 + _VOUCH_BYTES
        vouch = _unbox(
            initiate[KEY_BYTES + 16 : vouch_end], b"VOUCH---" + vouch_nonce, _shared(client, self._transient.secret)
        )
        if not hmac.compare_digest(vouch, self._transient_peer + self._own.public):
            raise ProtocolError("the client vouches for another connection")
        if not self._admits(client):
            self.refused_key = client
            self._say(b"ERROR", bytes((len(_DENIED),)) + _DENIED)
            raise ProtocolError(f"its key {fingerprint(client)} is not trusted here")
        self.peer_key = client
        self._on_ready(initiate[vouch_end:])
        nonce = self._count()
        box = bindings.crypto_box_easy_afternm(self._metadata(), b"CurveZMQREADY---" + nonce, self._key)
        self.outgoing += zmtp.command(b"READY", nonce + box)

    def _check_cookie(self, cookie: bytes) -> None:
        try:
            held = bindings.crypto_secretbox_open_easy(cookie[16:], b"COOKIE--" + cookie[:16], self._cookie_key)
        except CryptoError:
            raise ProtocolError("a cookie that was not made for this connection") from None
        if not hmac.compare_digest(held, self._transient_peer + self._transient.secret):
            raise ProtocolError("a cookie that was not made for this connection")


class CurveClient(CurveCodec):
    """The end that connects. `server_key`: the long-term public key that the server must own."""

    __slots__ = ("_server_key",)

    _sends: ClassVar[bytes] = b"CurveZMQMESSAGEC"
    _receives: ClassVar[bytes] = b"CurveZMQMESSAGES"

    def __init__(
        self,
        socket_type: bytes,
        *,
        own: KeyPair,
        server_key: bytes,
        properties: Mapping[str, bytes] = {},
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        super().__init__(socket_type, own=own, properties=properties, max_body_bytes=max_body_bytes)
        self._server_key = server_key

    def when_closed(self) -> str:
        """What it means that the peer closes the connection now."""
        if self._expects == b"WELCOME":
            # libzmq says no more than this to a client that expects another key.
            expected = fingerprint(self._server_key)
            return f"the server closed the connection: most likely it has another key than the expected {expected}"
        return super().when_closed()

    def _begin_handshake(self) -> None:
        nonce = self._count()
        box = bindings.crypto_box_easy_afternm(
            bytes(64), b"CurveZMQHELLO---" + nonce, _shared(self._server_key, self._transient.secret)
        )
        self._say(b"HELLO", b"\1\0" + bytes(72) + self._transient.public + nonce + box)
        self._expects = b"WELCOME"

    def _on_step(self, data: bytes) -> None:
        if self._expects == b"WELCOME":
            self._on_welcome(data)
        else:
            self._on_server_ready(data)

    def _on_error(self, reason: bytes) -> NoReturn:
        if reason == _OTHER_KEY:
            raise ProtocolError(f"the server there has another key than the expected {fingerprint(self._server_key)}")
        if reason == _DENIED:
            raise ProtocolError(f"the server does not trust our key {fingerprint(self._own.public)}")
        super()._on_error(reason)

    def _on_welcome(self, data: bytes) -> None:
        if len(data) != _WELCOME_BYTES:
            raise ProtocolError(f"a WELCOME of {len(data)} bytes; it has {_WELCOME_BYTES}")
        welcome = _unbox(data[16:], b"WELCOME-" + data[:16], _shared(self._server_key, self._transient.secret))
        self._transient_peer = welcome[:KEY_BYTES]
        self._share_keys()
        vouch_nonce, nonce = secrets.token_bytes(16), self._count()
        vouch = bindings.crypto_box_easy_afternm(
            self._transient.public + self._server_key,
            b"VOUCH---" + vouch_nonce,
            _shared(self._transient_peer, self._own.secret),
        )
        box = bindings.crypto_box_easy_afternm(
            self._own.public + vouch_nonce + vouch + self._metadata(), b"CurveZMQINITIATE" + nonce, self._key
        )
        self._say(b"INITIATE", welcome[KEY_BYTES:] + nonce + box)
        self._expects = b"READY"

    def _on_server_ready(self, data: bytes) -> None:
        if len(data) < 8 + _MAC_BYTES:
            raise ProtocolError(f"a READY of {len(data)} bytes is cut short")
        nonce = self._counted(data[:8])
        metadata = _unbox(data[8:], b"CurveZMQREADY---" + nonce, self._key)
        self.peer_key = self._server_key
        self._on_ready(metadata)


_FORGED: Final = "what came was not encrypted by this peer for us, or was changed on its way"


def _shared(public: bytes, secret: bytes) -> bytes:
    """What two ends encrypt with; each has its own secret key and the other's public one."""
    try:
        return bindings.crypto_box_beforenm(public, secret)
    except CryptoError:
        raise ProtocolError("a public key of low order") from None


def _unbox(box: Buffer, nonce: bytes, key: bytes) -> bytes:
    try:
        return bindings.crypto_box_open_easy_afternm(bytes(box), nonce, key)
    except CryptoError:
        raise ProtocolError(_FORGED) from None
