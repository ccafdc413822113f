"""The CURVE codec: a handshake with either end hostile, messages forged, repeated, cut, and of every size."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nacl import bindings

from bus import curve, zmtp
from bus.curve import CurveClient, CurveCodec, CurveServer
from bus.zmtp import ProtocolError
from schemas.envelope import Buffer

LIMIT = 500_000
SERVER = curve.key_pair()
CLIENT = curve.key_pair()
OTHER = curve.key_pair()


def server(
    admits: Callable[[bytes], bool] = lambda key: key == CLIENT.public, *, limit: int = LIMIT, kind: bytes = b"ROUTER"
) -> CurveServer:
    """The end that listens."""
    return CurveServer(kind, own=SERVER, admits=admits, properties={"X-Name": b"broker"}, max_body_bytes=limit)


def client(server_key: bytes = SERVER.public, *, kind: bytes = b"DEALER") -> CurveClient:
    """The end that connects."""
    return CurveClient(kind, own=CLIENT, server_key=server_key, properties={"X-Name": b"pc2"}, max_body_bytes=LIMIT)


def take(codec: zmtp.Codec) -> bytes:
    """What the codec wants sent."""
    data = bytes(codec.outgoing)
    codec.outgoing.clear()
    return data


def handshake(ours: CurveClient, theirs: CurveServer, *, rounds: int = 3) -> None:
    """Carry what each says to the other; three rounds are a whole handshake."""
    for _ in range(rounds):
        theirs.feed(take(ours))
        ours.feed(take(theirs))


def pair(limit: int = LIMIT) -> tuple[CurveClient, CurveServer]:
    """Two ends that have met."""
    ours, theirs = client(), server(limit=limit)
    handshake(ours, theirs)
    assert ours.is_ready
    assert theirs.is_ready
    return ours, theirs


def wire(codec: zmtp.Codec, *messages: list[Any]) -> bytes:
    """What a codec makes of messages."""
    out: list[Buffer] = []
    size = sum(codec.encode(list(frames), out) for frames in messages)
    data = b"".join(out)
    assert len(data) == size
    return data


def pour(codec: zmtp.Codec, data: bytes, cuts: list[int] | None = None) -> list[list[bytes]]:
    """Feed `data` cut at `cuts` as a socket would bring it, large frames straight into their buffer."""
    messages: list[list[Any]] = []
    borders = [0, *sorted({cut for cut in cuts or [] if 0 < cut < len(data)}), len(data)]
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


# Meeting --------------------------------------------------------------------------------------------------------


def test_both_ends_know_each_other_after_the_handshake() -> None:
    """Keys are proved, and the metadata of both arrives: encrypted, so that nobody between has read it."""
    ours, theirs = client(), server()
    said = []
    for _ in range(3):
        said.append(take(ours))
        theirs.feed(said[-1])
        said.append(take(theirs))
        ours.feed(said[-1])

    assert (theirs.peer_key, ours.peer_key) == (CLIENT.public, SERVER.public)
    assert (theirs.peer_properties["x-name"], ours.peer_properties["x-name"]) == (b"pc2", b"broker")
    assert not any(secret in b"".join(said) for secret in (b"pc2", b"broker", b"DEALER", CLIENT.public))


def test_commands_have_the_sizes_of_the_specification() -> None:
    """HELLO 200 bytes and WELCOME 168, with the names and the version RFC 26 gives them."""
    ours, theirs = client(), server()
    greeting = take(ours)
    assert greeting[12:20] == b"CURVE\0\0\0" and greeting[32] == 0 and len(greeting) == 64
    assert bytes(theirs.outgoing)[32] == 1

    theirs.feed(greeting)
    ours.feed(take(theirs))
    hello = take(ours)
    theirs.feed(hello)
    welcome = take(theirs)

    assert hello[:10] == b"\x04\xc8\x05HELLO\x01\x00" and len(hello) == 202
    assert welcome[:10] == b"\x04\xa8\x07WELCOME" and len(welcome) == 170


def test_key_that_is_not_trusted_is_refused_and_named() -> None:
    """The client hears that it is its key; the server remembers which key it was, and no message gets through."""
    ours, theirs = client(), server(lambda key: False)

    with pytest.raises(ProtocolError, match="is not trusted here"):
        handshake(ours, theirs)
    with pytest.raises(ProtocolError, match=f"does not trust our key {curve.fingerprint(CLIENT.public)}"):
        ours.feed(take(theirs))

    assert theirs.refused_key == CLIENT.public
    assert not theirs.is_ready and not theirs.peer_key


def test_server_with_another_key_is_told_apart() -> None:
    """Our server says so; libzmq's closes the connection, which means the same at that moment."""
    ours, theirs = client(OTHER.public), server()
    expected = curve.fingerprint(OTHER.public)

    with pytest.raises(ProtocolError, match="expects a server with another key"):
        handshake(ours, theirs)
    assert f"another key than the expected {expected}" in ours.when_closed()
    with pytest.raises(ProtocolError, match=f"another key than the expected {expected}"):
        ours.feed(take(theirs))


def test_server_that_only_pretends_to_own_the_key_is_found_out() -> None:
    """Whoever sits between answers HELLO with a WELCOME of its own, which does not open."""
    ours, theirs = client(), server()
    handshake(ours, theirs, rounds=1)
    theirs.feed(take(ours))
    take(theirs)

    with pytest.raises(ProtocolError, match="not encrypted by this peer"):
        ours.feed(zmtp.command(b"WELCOME", bytes(160)))


def test_client_that_only_pretends_to_own_a_trusted_key_is_found_out() -> None:
    """C is public; without c nobody can vouch for it."""
    impostor = CurveClient(b"DEALER", own=curve.KeyPair(CLIENT.public, OTHER.secret), server_key=SERVER.public)
    theirs = server()

    with pytest.raises(ProtocolError, match="not encrypted by this peer"):
        handshake(impostor, theirs)

    assert not theirs.is_ready and not theirs.refused_key


def test_vouch_for_another_connection_does_not_count() -> None:
    """A server that a client has met cannot pass its vouch on to another server."""
    ours, theirs = client(), server()
    handshake(ours, theirs, rounds=1)
    theirs.feed(take(ours))
    welcome = take(theirs)[10:]
    opened = bindings.crypto_box_open_easy_afternm(
        welcome[16:], b"WELCOME-" + welcome[:16], bindings.crypto_box_beforenm(SERVER.public, ours._transient.secret)
    )
    transient, cookie = opened[:32], opened[32:]
    elsewhere = bindings.crypto_box_easy_afternm(
        ours._transient.public + OTHER.public,
        b"VOUCH---" + bytes(16),
        bindings.crypto_box_beforenm(transient, CLIENT.secret),
    )
    box = bindings.crypto_box_easy_afternm(
        CLIENT.public + bytes(16) + elsewhere,
        b"CurveZMQINITIATE" + (2).to_bytes(8, "big"),
        bindings.crypto_box_beforenm(transient, ours._transient.secret),
    )

    with pytest.raises(ProtocolError, match="vouches for another connection"):
        theirs.feed(zmtp.command(b"INITIATE", cookie + (2).to_bytes(8, "big") + box))


def test_recorded_handshake_opens_nothing_when_it_is_played_again() -> None:
    """The server's part of it is new each time."""
    ours, theirs = client(), server()
    said = []
    for _ in range(3):
        said.append(take(ours))
        theirs.feed(said[-1])
        ours.feed(take(theirs))
    again = server()

    with pytest.raises(ProtocolError, match="cookie that was not made for this connection"):
        for data in said:
            again.feed(data)

    assert not again.is_ready


def test_socket_type_that_does_not_fit_is_refused_after_the_keys() -> None:
    """As without encryption."""
    with pytest.raises(ProtocolError, match="a SUB socket cannot talk to this ROUTER port"):
        handshake(client(kind=b"SUB"), server())


@pytest.mark.parametrize("make", [client, server])
def test_peer_in_clear_is_refused(make: Callable[[], CurveCodec]) -> None:
    """No end falls back to the NULL mechanism, and the NULL codec refuses CURVE."""
    with pytest.raises(ProtocolError, match="'NULL', only CURVE is spoken"):
        make().feed(zmtp.greeting(b"NULL", as_server=False))
    with pytest.raises(ProtocolError, match="'CURVE', only NULL is spoken"):
        zmtp.Codec(b"DEALER").feed(bytes(make().outgoing))


@pytest.mark.parametrize("name", [b"READY", b"INITIATE", b"WELCOME", b"PING", b"SUBSCRIBE", b""])
def test_command_out_of_its_turn_ends_the_connection(name: bytes) -> None:
    """A server that waits for HELLO takes nothing else; above all no READY in clear."""
    theirs = server()
    theirs.feed(zmtp.greeting(b"CURVE", as_server=False))

    with pytest.raises(ProtocolError, match="where HELLO belongs"):
        theirs.feed(zmtp.command(name, b"\0" * 40))


def test_key_of_low_order_is_no_key() -> None:
    """With it anybody would agree on the same secret."""
    assert not curve.is_public_key(bytes(32))
    assert curve.is_public_key(CLIENT.public)


QUICK = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(st.data())
def test_random_bytes_never_get_past_the_handshake(data: st.DataObject) -> None:
    """At any stage, of either end: ProtocolError or waiting for more, never ready, never a message."""
    ours, theirs = client(), server()
    victim, peer = (theirs, ours) if data.draw(st.booleans()) else (ours, theirs)
    for _ in range(data.draw(st.integers(0, 2))):
        victim.feed(take(peer))
        peer.feed(take(victim))
    name = data.draw(st.sampled_from([b"HELLO", b"WELCOME", b"INITIATE", b"READY", b"ERROR", b"MESSAGE"]))
    junk = data.draw(st.binary(max_size=400))
    hostile = data.draw(st.sampled_from([junk, zmtp.command(name, junk)]))
    was_ready = victim.is_ready

    with contextlib.suppress(ProtocolError):
        assert victim.feed(hostile) == []

    assert victim.is_ready == was_ready


@QUICK
@given(st.data())
def test_changed_byte_in_the_handshake_ends_it(data: st.DataObject) -> None:
    """Whatever byte of HELLO, WELCOME, INITIATE or READY is changed on its way, the end that gets it does not go on."""
    ours, theirs = client(), server()
    turn = data.draw(st.integers(2, 5))
    ends: list[CurveCodec] = [ours, theirs]
    for step in range(turn):
        ends[(step + 1) % 2].feed(take(ends[step % 2]))
    speaker, victim = ends[turn % 2], ends[(turn + 1) % 2]
    command = bytearray(take(speaker))
    # The 72 bytes of padding in HELLO carry nothing and are not looked at, as RFC 26 has it.
    at = data.draw(st.integers(82 if turn == 2 else 10, len(command) - 1))
    command[at] ^= 1 << data.draw(st.integers(0, 7))

    with pytest.raises(ProtocolError):
        victim.feed(bytes(command))

    assert not victim.is_ready


def test_hello_whose_key_has_an_unread_bit_set_is_refused() -> None:
    """X25519 passes over that bit, so the box opens all the same: it is looked at for itself."""
    ours, theirs = client(), server()
    theirs.feed(take(ours))
    ours.feed(take(theirs))
    hello = bytearray(take(ours))
    hello[113] ^= 0x80

    with pytest.raises(ProtocolError, match="top bit"):
        theirs.feed(bytes(hello))


# Messages -------------------------------------------------------------------------------------------------------

# Sizes on both sides of those where a frame's head grows (255 with what encryption adds) and where it counts as large.
SIZES = st.one_of(st.integers(0, 300), st.sampled_from([65_502, 65_503, 65_536, 70_000]))
FRAMES = st.lists(SIZES, min_size=1, max_size=5)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(messages=st.lists(FRAMES, max_size=4), cuts=st.lists(st.integers(1, 300_000), max_size=6))
def test_messages_arrive_as_they_were_sent_however_they_are_cut(messages: list[list[int]], cuts: list[int]) -> None:
    """Both ways, of any size."""
    sent = [[bytes((size % 251,)) * size for size in sizes] for sizes in messages]
    for sender, receiver in (pair(), pair()[::-1]):
        assert pour(receiver, wire(sender, *sent), cuts) == sent


def test_nothing_of_a_message_can_be_read_on_the_wire() -> None:
    """And the same message looks different each time."""
    ours, _ = pair()
    first, second = wire(ours, [b"secret subject", b"s" * 70_000]), wire(ours, [b"secret subject", b"s" * 70_000])

    assert b"secret" not in first and b"s" * 8 not in first
    assert first[20:] != second[20:]


def test_large_frame_is_opened_where_it_was_received() -> None:
    """No second copy of it is made: what is handed out is a view of the buffer that was read into."""
    ours, theirs = pair()
    data = wire(ours, [b"x" * 150_000])

    assert theirs.feed(data[:1000]) == []
    large = theirs.large
    assert large is not None
    large[:] = data[1000:]
    [[frame]] = theirs.large_filled(len(large))

    assert isinstance(frame, memoryview) and frame.obj is large.obj
    assert bytes(frame) == b"x" * 150_000


@pytest.mark.parametrize("size", [10, 70_000])
@pytest.mark.parametrize("place", ["nonce", "box", "last"])
def test_changed_message_ends_the_connection(size: int, place: str) -> None:
    """One bit, small frames and large."""
    ours, theirs = pair()
    data = bytearray(wire(ours, [b"x" * size]))
    head = 2 if size == 10 else 9
    data[{"nonce": head + 15, "box": head + 20, "last": len(data) - 1}[place]] ^= 0x40

    with pytest.raises(ProtocolError):
        pour(theirs, bytes(data), [head + 100])


def test_repeated_message_ends_the_connection() -> None:
    """A nonce must grow."""
    ours, theirs = pair()
    data = wire(ours, [b"pay 10"])
    assert pour(theirs, data) == [[b"pay 10"]]

    with pytest.raises(ProtocolError, match="its nonce does not grow"):
        pour(theirs, data)


def test_message_of_the_other_direction_does_not_open() -> None:
    """What the server said cannot be sent back to it."""
    ours, theirs = pair()
    for _ in range(5):
        data = wire(theirs, [b"yes"])

    with pytest.raises(ProtocolError, match="not encrypted by this peer"):
        pour(theirs, data)
    assert ours.is_ready


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (b"\x00\x05hello", "not encrypted"),
        (b"\x00\x28\x07MESSAGE" + bytes(32), "does not grow|not encrypted"),
        (b"\x00\x10\x07MESSAGE" + b"\xff" * 8, "not encrypted"),
        (b"\x01\x29\x07MESSAGE" + b"\xff" * 33 + b"\x00\x00", "continues in clear"),
        (zmtp.ping(b"x"), "a command that is not encrypted"),
        (zmtp.command(b"ERROR", b"\x01x"), "a command that is not encrypted"),
    ],
)
def test_clear_text_after_the_handshake_ends_the_connection(frame: bytes, why: str) -> None:
    """Nothing is taken that was not encrypted, also no command."""
    _, theirs = pair()

    with pytest.raises(ProtocolError, match=why):
        pour(theirs, frame)


def test_commands_travel_encrypted() -> None:
    """PING is answered, a subscription is heard, and neither can be read on the way."""
    ours, theirs = pair()

    data = ours.ping(b"0123456789abcdefXYZ")
    assert b"PING" not in data
    assert pour(theirs, data) == []
    pong = take(theirs)
    assert b"PONG" not in pong
    assert pour(ours, pong) == []
    assert ours.pongs == [b"0123456789abcdef"]

    ours._say(b"SUBSCRIBE", b"a.b")
    pour(theirs, take(ours))
    assert theirs.subscriptions == [(True, b"a.b")]


@QUICK
@given(st.binary(max_size=200), st.integers(0, 255))
def test_trusted_peer_with_nonsense_inside_gets_protocol_errors_only(inside: bytes, flags: int) -> None:
    """Who holds a key may still be broken: reserved flags, unknown commands, commands that continue."""
    ours, theirs = pair()
    out: list[Buffer] = []
    ours._seal(bytes((flags,)), inside, out)

    try:
        messages = pour(theirs, b"".join(out))
    except ProtocolError:
        assert flags
    else:
        assert messages == ([[inside]] if flags == 0 else [])


# Limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [18_000, 60_000, 500_000])
def test_message_with_a_frame_over_the_limit_is_skipped_alone(size: int) -> None:
    """The broker answers it with what came before it; what comes after it in the same read arrives."""
    ours, theirs = pair(limit=1024)
    data = wire(ours, [b"before"], [b"subject", b"x" * size], [b"a", b"b"], [b"after"])

    assert pour(theirs, data, [100, 9_000, 17_000]) == [[b"before"], [b"a", b"b"], [b"after"]]
    [(frames, claimed)] = theirs.oversize
    assert frames == [b"subject"] and claimed > size


def test_message_that_grows_over_the_limit_frame_by_frame_is_skipped_alone() -> None:
    """Each frame is small enough, together they are not."""
    ours, theirs = pair(limit=1024)
    data = wire(ours, [b"subject", *[b"x" * 6_000] * 4], [b"after"])

    assert pour(theirs, data) == [[b"after"]]
    [(frames, claimed)] = theirs.oversize
    assert frames[0] == b"subject" and claimed > 24_000


def test_message_of_too_many_frames_is_skipped_alone() -> None:
    """As without encryption."""
    ours, theirs = pair()
    data = wire(ours, [b"x"] * 2_000, [b"after"])

    assert pour(theirs, data) == [[b"after"]]
    assert len(theirs.oversize) == 1


def test_two_messages_over_the_limit_in_one_read_are_skipped_each_with_its_own_frames() -> None:
    """One for the sum of its frames, known when they are opened, one for a single frame, known before."""
    ours, theirs = pair(limit=1024)
    data = wire(ours, [b"one", *[b"x" * 6_000] * 4], [b"two", b"x" * 60_000], [b"after", b"it"])

    assert pour(theirs, data, [len(data) - 1_000]) == [[b"after", b"it"]]
    assert [frames[0] for frames, _ in theirs.oversize] == [b"one", b"two"]


def test_nothing_is_encrypted_before_there_is_a_key() -> None:
    """The cipher would take whatever lies in memory for one."""
    out: list[Buffer] = []
    with pytest.raises(RuntimeError, match="before the handshake"):
        client().encode([b"secret"], out)
    assert not out


def test_what_a_stranger_says_cannot_drive_a_terminal() -> None:
    """ERROR is not authenticated, and its reason is shown to a person."""
    ours = client()
    handshake(ours, server(), rounds=1)
    take(ours)

    with pytest.raises(ProtocolError) as caught:
        ours.feed(zmtp.command(b"ERROR", b"\x08\x1b[2Jgone\n"))

    assert str(caught.value).endswith("?[2Jgone?")
