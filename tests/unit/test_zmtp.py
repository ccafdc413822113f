"""The ZMTP codec: exact bytes, any chunking, any nonsense."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus import zmtp
from bus.zmtp import Codec, ProtocolError
from schemas.envelope import Buffer

LIMIT = 200_000

GREETING = bytes.fromhex("ff00000000000000007f0301" + b"NULL".ljust(20, b"\0").hex() + "00" * 32)

# A DEALER's READY as libzmq writes it.
READY = bytes.fromhex(
    "04290552454144590b536f636b65742d547970650000000644454 14c45520849 64656e7469747900000000".replace(" ", "")
)


@pytest.fixture(params=["c", "python"])
def scanner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both inner loops, where the compiled one is there."""
    if request.param == "python":
        monkeypatch.setattr(zmtp, "_scan", None)
    elif zmtp._scan is None:
        pytest.skip("schemas/_scan.c is not compiled")
    return str(request.param)


def ready_codec(limit: int = LIMIT) -> Codec:
    """A ROUTER that has met its DEALER."""
    codec = Codec(b"ROUTER", max_body_bytes=limit)
    assert codec.feed(GREETING + READY) == []
    assert codec.is_ready
    codec.outgoing.clear()
    return codec


def wire(messages: list[list[bytes]]) -> bytes:
    """What `encode_message` makes of them."""
    out: list[Buffer] = []
    for frames in messages:
        zmtp.encode_message(list(frames), out)
    return b"".join(out)


def pour(codec: Codec, data: bytes, cuts: list[int]) -> list[list[bytes]]:
    """Feed `data` cut at `cuts` as a socket would bring it, large frames straight into their buffer."""
    messages: list[list[Any]] = []
    borders = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
    for start, stop in itertools.pairwise(borders):
        piece = memoryview(data)[start:stop]
        while len(piece):
            if codec.large is not None:
                count = min(len(piece), len(codec.large))
                codec.large[:count] = piece[:count]
                messages += codec.large_filled(count)
                piece = piece[count:]
            else:
                messages += codec.feed(bytes(piece))
                break
    return [[bytes(frame) for frame in frames] for frames in messages]


def test_greeting_and_ready_are_the_bytes_of_the_protocol() -> None:
    """64 bytes of greeting for ZMTP 3.1 and NULL, then READY with socket type and identity."""
    codec = Codec(b"DEALER")
    assert bytes(codec.outgoing) == GREETING
    codec.outgoing.clear()

    codec.feed(GREETING)

    assert bytes(codec.outgoing) == READY


def test_frames_have_their_golden_bytes() -> None:
    """Short, long and continued frames, as RFC 37 draws them."""
    assert wire([[b"a"]]) == bytes.fromhex("000161")
    assert wire([[b"", b"ab"]]) == bytes.fromhex("0100" + "00026162")
    assert wire([[b"x" * 256]]) == bytes.fromhex("020000000000000100") + b"x" * 256
    assert wire([[b"x" * 255]])[:2] == b"\x00\xff"
    assert zmtp.ping(b"ctx") == bytes.fromhex("040a" + "0450494e47" + "0000" + "637478")
    assert zmtp.subscription(b"a.b") == [b"\x01a.b"]
    assert zmtp.subscription(b"a.b", is_cancel=True) == [b"\x00a.b"]


def test_ping_is_answered_with_its_context() -> None:
    """At most 16 bytes of it, as the protocol says; the heartbeats of libzmq depend on it."""
    codec = ready_codec()

    codec.feed(zmtp.ping(b"0123456789abcdefXYZ"))

    assert bytes(codec.outgoing) == bytes.fromhex("0415" + "04504f4e47") + b"0123456789abcdef"


MESSAGES = st.lists(
    st.lists(
        st.one_of(
            st.binary(max_size=300),
            st.integers(250, 260).map(bytes),
            st.sampled_from([65_535, 65_536, 70_000]).map(lambda size: b"\xa5" * size),
        ),
        min_size=1,
        max_size=8,
    ),
    max_size=6,
)
QUIET = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@QUIET
@given(messages=MESSAGES, data=st.data())
def test_any_chunking_brings_the_same_messages(scanner: str, messages: list[list[bytes]], data: st.DataObject) -> None:
    """However TCP cuts the stream, greeting included, the frames come out as they went in."""
    stream = GREETING + READY + wire(messages)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12))

    assert pour(Codec(b"ROUTER", max_body_bytes=1 << 20), stream, cuts) == messages


@QUIET
@given(messages=st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=3), max_size=3))
def test_byte_by_byte_brings_the_same_messages(scanner: str, messages: list[list[bytes]]) -> None:
    """The worst chunking there is."""
    stream = GREETING + READY + wire(messages)

    assert pour(Codec(b"ROUTER"), stream, list(range(len(stream)))) == messages


@QUIET
@given(noise=st.binary(max_size=2_000), is_ready=st.booleans(), data=st.data())
def test_random_bytes_raise_only_protocol_errors(
    scanner: str, noise: bytes, is_ready: bool, data: st.DataObject
) -> None:
    """Before and after the handshake, in any pieces, and without endless loops."""
    codec = ready_codec() if is_ready else Codec(b"ROUTER", max_body_bytes=LIMIT)
    cuts = data.draw(st.lists(st.integers(0, len(noise)), max_size=6))
    with contextlib.suppress(ProtocolError):
        pour(codec, noise, cuts)


@QUIET
@given(body=st.binary(max_size=400))
def test_random_commands_raise_only_protocol_errors(body: bytes) -> None:
    """READY, ERROR, SUBSCRIBE or nothing known, with whatever behind it."""
    for name in (b"READY", b"ERROR", b"PING", b"PONG", b"SUBSCRIBE", b"\xff\xfe"):
        for codec in (ready_codec(), Codec(b"XPUB")):
            with contextlib.suppress(ProtocolError):
                codec.feed((b"" if codec.is_ready else GREETING) + zmtp.command(name, body))


def test_socket_type_of_any_length_is_refused_in_so_many_words() -> None:
    """The refusal fits its length byte, however long the name it quotes."""
    value = b"X" * 5_000
    data = b"\x0bSocket-Type" + len(value).to_bytes(4, "big") + value
    codec = Codec(b"ROUTER")
    with pytest.raises(ProtocolError, match="cannot talk to this ROUTER port"):
        codec.feed(GREETING + zmtp.command(b"READY", data))

    assert b"\x05ERROR" in bytes(codec.outgoing)


@pytest.mark.parametrize(
    ("stream", "what"),
    [
        (b"GET / HTTP/1.1\r\n", "does not greet"),
        (b"\x16\x03\x01\x02", "does not greet"),
        (GREETING[:10] + b"\x01" + GREETING[11:], "does not greet"),
        (GREETING.replace(b"NULL", b"CURV"), "CURV"),
        (GREETING + b"\x00\x01a", "before the READY"),
        (GREETING + zmtp.ping(), "before READY"),
        (GREETING + READY + b"\x08\x00", "reserved flag"),
        (GREETING + READY + zmtp.command(b"DANCE", b""), "unknown command"),
        (GREETING + READY + b"\x06\x00\x00\x00\x00\x00\xff\xff\xff", "a command of"),
        (GREETING + READY + b"\x02\xff\xff\xff\xff\xff\xff\xff\xff", "a frame of"),
        (GREETING + zmtp.command(b"READY", b"\x0bSocket-Type\xff\xff\xff\xff"), "cut short"),
        (GREETING + zmtp.command(b"ERROR", b"\x03no!"), "refused the connection: no!"),
    ],
)
def test_what_breaks_the_protocol_is_named(scanner: str, stream: bytes, what: str) -> None:
    """Each fault has words of its own."""
    codec = Codec(b"ROUTER", max_body_bytes=LIMIT)
    with pytest.raises(ProtocolError, match=what):
        codec.feed(stream)


@pytest.mark.parametrize("chunk", [1, 1_000, 65_536, 10_000_000])
@pytest.mark.parametrize(
    ("frames", "kept"),
    [
        ([b"x" * 300_000], []),
        ([b"s", b"x" * 300_000, b"h"], [b"s"]),
        ([b"a" * 150_000, b"b" * 150_000], [b"a" * 150_000]),
    ],
)
def test_oversize_message_is_skipped_and_the_next_one_read(
    scanner: str, frames: list[bytes], kept: list[bytes], chunk: int
) -> None:
    """The connection lives on; what came before the excess is reported with the size claimed."""
    codec = ready_codec()
    stream = wire([[b"before"], frames, [b"after", b"it"]])
    if chunk == 1:
        chunk = 7_919

    messages = pour(codec, stream, list(range(0, len(stream), chunk)))

    assert messages == [[b"before"], [b"after", b"it"]]
    ((found, size),) = codec.oversize
    assert [bytes(frame) for frame in found] == kept
    assert size >= 300_000


def test_message_of_too_many_frames_is_skipped(scanner: str) -> None:
    """Nine frames are nobody's request."""
    codec = ready_codec()

    assert pour(codec, wire([[b"x"] * 9, [b"ok"]]), []) == [[b"ok"]]
    assert len(codec.oversize) == 1


@pytest.mark.parametrize(
    ("ours", "theirs", "fits"), [(b"XPUB", b"SUB", True), (b"XPUB", b"REQ", False), (b"XSUB", b"PUB", True)]
)
def test_socket_types_meet_as_in_libzmq(ours: bytes, theirs: bytes, fits: bool) -> None:
    """A wrong pair is refused at the handshake."""
    data = b"\x0bSocket-Type" + len(theirs).to_bytes(4, "big") + theirs
    codec = Codec(ours)
    if fits:
        codec.feed(GREETING + zmtp.command(b"READY", data))
        assert codec.peer_type == theirs
    else:
        with pytest.raises(ProtocolError, match="it serves SUB, XSUB"):
            codec.feed(GREETING + zmtp.command(b"READY", data))
