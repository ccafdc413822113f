"""The raw references: bare pyzmq sockets around `zmq.proxy`, with nothing of a bus in between.

`proxy` is the shared queue of the ZeroMQ guide (chapter 2): a DEALER client, ROUTER-DEALER in the middle, a DEALER
worker, pyzmq's ordinary calls and options. `tuned` is the ceiling of libzmq: DEALER-DEALER, which cannot tell callers
apart, one frame per message, no high-water mark, sockets drained past pyzmq's Python layer.

Roles: `broker` (every proxy, each on a thread of its own), `worker`, `client`, `subscriber`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import zmq
from zmq.backend import Socket as BackendSocket

from bench_bus_parts.line_protocol import Fields, commands, say
from bench_bus_parts.load import UNLIMITED, latency_figures

STREAM = b"stream "
TOPIC = b"bench.event"

# Copying a message below this many bytes is cheaper than tracking a shared buffer.
COPY_BELOW_BYTES = 64 * 1024

# The base class's methods, past the attribute look-ups of pyzmq's Python layer.
_send: Callable[..., Any] = BackendSocket.send
_recv: Callable[..., Any] = BackendSocket.recv


def _socket(context: zmq.Context[Any], kind: int) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    return socket


def broker() -> None:
    """Four proxies in one process, each on its own thread; an idle one costs nothing."""
    context = zmq.Context()
    ports: dict[str, int] = {}

    def proxy(
        front_name: str,
        front_kind: int,
        back_name: str,
        back_kind: int,
        make: Callable[[zmq.Context[Any], int], zmq.Socket[bytes]] = _socket,
    ) -> None:
        front, back = make(context, front_kind), make(context, back_kind)
        ports[front_name] = front.bind_to_random_port("tcp://127.0.0.1")
        ports[back_name] = back.bind_to_random_port("tcp://127.0.0.1")
        threading.Thread(target=zmq.proxy, args=(front, back), daemon=True).start()

    proxy("plain_front", zmq.DEALER, "plain_back", zmq.DEALER)
    proxy("bulk_front", zmq.DEALER, "bulk_back", zmq.DEALER)
    proxy("router_front", zmq.ROUTER, "router_back", zmq.DEALER, zmq.Context.socket)
    proxy("xsub", zmq.XSUB, "xpub", zmq.XPUB)
    say(ready=True, ports=ports)
    sys.stdin.read()


def plain_worker(port: int) -> None:
    """Echo what comes, with pyzmq's ordinary calls."""
    socket: zmq.Socket[bytes] = zmq.Context().socket(zmq.DEALER)
    socket.connect(f"tcp://127.0.0.1:{port}")
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    say(ready=True)
    while True:
        socket.send_multipart(socket.recv_multipart())


def worker(port: int, is_bulk: bool = False) -> None:
    """Echo what comes; `stream N SIZE` is answered by N chunks and an empty end. A bulk worker copies nothing."""
    socket = _socket(zmq.Context(), zmq.DEALER)
    socket.connect(f"tcp://127.0.0.1:{port}")
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    say(ready=True)
    if is_bulk:
        while True:
            socket.send_multipart(socket.recv_multipart(copy=False), copy=False)
    while True:
        _answer(socket, _recv(socket))
        try:
            while True:
                _answer(socket, _recv(socket, zmq.NOBLOCK))
        except zmq.Again:
            pass


def _answer(socket: zmq.Socket[bytes], body: bytes) -> None:
    if body.startswith(STREAM):
        count, size = map(int, body[len(STREAM) :].split())
        for chunk in [b"x" * size] * count:
            _send(socket, chunk)
        _send(socket, b"")
    else:
        _send(socket, body)


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(0)


class Client:
    """One DEALER and its cases."""

    def __init__(self, port: int, publish_port: int) -> None:
        context: zmq.Context[Any] = zmq.Context()
        self.socket = _socket(context, zmq.DEALER)
        self.socket.connect(f"tcp://127.0.0.1:{port}")
        self.publisher = _socket(context, zmq.PUB)
        self.publisher.connect(f"tcp://127.0.0.1:{publish_port}")

    def rr(self, *, seconds: float, requests: int, in_flight: int, body_bytes: int) -> Fields:
        """Keep `in_flight` requests outstanding: one more for each reply."""
        socket, body = self.socket, b"x" * body_bytes
        limit = requests or UNLIMITED
        sent = received = 0
        begin = time.perf_counter()
        end = begin + seconds
        for _ in range(min(in_flight, limit)):
            _send(socket, body)
            sent += 1
        while received < sent:
            _recv(socket)
            ready = 1
            try:
                while True:
                    _recv(socket, zmq.NOBLOCK)
                    ready += 1
            except zmq.Again:
                pass
            received += ready
            if time.perf_counter() < end:
                for _ in range(min(ready, limit - sent)):
                    _send(socket, body)
                    sent += 1
        elapsed_s = time.perf_counter() - begin
        return {"operations": received, "elapsed_s": elapsed_s, "per_s": received / elapsed_s}

    def latency(self, *, seconds: float, requests: int, body_bytes: int) -> Fields:
        """Single calls one after the other; a large body is neither copied in nor out."""
        socket, body, copy = self.socket, b"x" * body_bytes, body_bytes < COPY_BELOW_BYTES
        limit = requests or UNLIMITED
        taken_ns: list[int] = []
        begin = now = time.perf_counter_ns()
        end = begin + int(seconds * 1e9)
        while now < end and len(taken_ns) < limit:
            before = now
            socket.send(body, 0, copy)
            socket.recv(0, copy)
            now = time.perf_counter_ns()
            taken_ns.append(now - before)
        return latency_figures(taken_ns, (now - begin) / 1e9)

    def stream(self, *, seconds: float, requests: int, chunks: int, chunk_bytes: int) -> Fields:
        """Ask once, receive all chunks and the end."""
        socket, ask = self.socket, STREAM + b"%d %d" % (chunks, chunk_bytes)
        limit = requests or UNLIMITED
        taken_ns: list[int] = []
        begin = now = time.perf_counter_ns()
        end = begin + int(seconds * 1e9)
        while now < end and len(taken_ns) < limit:
            before = now
            _send(socket, ask)
            while _recv(socket):
                pass
            now = time.perf_counter_ns()
            taken_ns.append(now - before)
        return latency_figures(taken_ns, (now - begin) / 1e9)

    def publish(self, *, events: int, body_bytes: int) -> Fields:
        """Publish `events` messages of topic and body in one frame, as fast as they go."""
        socket, frame = self.publisher, TOPIC + b"x" * (body_bytes)
        began_at = time.monotonic()
        for _ in range(events):
            _send(socket, frame)
        return {"operations": events, "began_at": began_at, "elapsed_s": time.monotonic() - began_at}


class PlainClient:
    """One DEALER with pyzmq's ordinary calls and options."""

    def __init__(self, port: int) -> None:
        self.socket: zmq.Socket[bytes] = zmq.Context().socket(zmq.DEALER)
        self.socket.connect(f"tcp://127.0.0.1:{port}")

    def rr(self, *, seconds: float, requests: int, in_flight: int, body_bytes: int) -> Fields:
        """Keep `in_flight` requests outstanding: the next one after each reply."""
        socket, message = self.socket, [b"x" * body_bytes]
        limit = requests or UNLIMITED
        sent = min(in_flight, limit)
        received = 0
        begin = time.perf_counter()
        end = begin + seconds
        for _ in range(sent):
            socket.send_multipart(message)
        while received < sent:
            socket.recv_multipart()
            received += 1
            if sent < limit and time.perf_counter() < end:
                socket.send_multipart(message)
                sent += 1
        elapsed_s = time.perf_counter() - begin
        return {"operations": received, "elapsed_s": elapsed_s, "per_s": received / elapsed_s}

    def latency(self, *, seconds: float, requests: int, body_bytes: int) -> Fields:
        """Single calls one after the other."""
        socket, message = self.socket, [b"x" * body_bytes]
        limit = requests or UNLIMITED
        taken_ns: list[int] = []
        begin = now = time.perf_counter_ns()
        end = begin + int(seconds * 1e9)
        while now < end and len(taken_ns) < limit:
            before = now
            socket.send_multipart(message)
            socket.recv_multipart()
            now = time.perf_counter_ns()
            taken_ns.append(now - before)
        return latency_figures(taken_ns, (now - begin) / 1e9)


def client(port: int, publish_port: int) -> None:
    """Carry out the bench's commands."""
    _carry_out(Client(port, publish_port))


def plain_client(port: int) -> None:
    """Carry out the bench's commands with ordinary calls."""
    _carry_out(PlainClient(port))


def _carry_out(cases: Client | PlainClient) -> None:
    say(ready=True)
    for command in commands():
        say(**getattr(cases, command.pop("case"))(**command))


def subscriber(port: int) -> None:
    """Count events between `arm` and `collect`."""
    socket = _socket(zmq.Context(), zmq.SUB)
    socket.setsockopt(zmq.SUBSCRIBE, TOPIC)
    socket.connect(f"tcp://127.0.0.1:{port}")
    say(ready=True)
    expected = 0
    for command in commands():
        if command["case"] == "arm":
            while socket.poll(0):
                socket.recv()
            expected = command["expected"]
            say(armed=True)
        else:
            say(**_collect(socket, expected))


def _collect(socket: zmq.Socket[bytes], expected: int) -> Fields:
    received, last_at = 0, time.monotonic()
    while received < expected and socket.poll(1000):
        try:
            while received < expected:
                _recv(socket, zmq.NOBLOCK)
                received += 1
        except zmq.Again:
            pass
        last_at = time.monotonic()
    return {"received": received, "last_at": last_at}


ROLES: dict[str, Callable[..., None]] = {
    "broker": broker,
    "worker": worker,
    "plain_worker": plain_worker,
    "client": client,
    "plain_client": plain_client,
    "subscriber": subscriber,
}

if __name__ == "__main__":
    ROLES[sys.argv[1]](**json.loads(sys.argv[2]))
