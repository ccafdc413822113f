"""Many HTTP callers in one thread, each with a connection and one request at a time; cheap, for they share the cores."""

from __future__ import annotations

import select
import socket
import time
from typing import Final, NamedTuple

# Longest wait for any answer, seconds.
_ANSWER_S: Final = 10.0

# Bytes of the largest answer that is read in one go; those here have some hundreds.
_ANSWER_BYTES: Final = 65_536


class NoAnswer(RuntimeError):
    """A server closed, was silent, or answered with an error."""


class Load(NamedTuple):
    """One measurement: answers per second, and their times in milliseconds."""

    per_s: float
    p50_ms: float
    p99_ms: float


def load(port: int, requests: list[bytes], connections: int, seconds: float) -> Load:
    """Ask for `seconds`, every connection again as soon as it has its answer. Raises NoAnswer."""
    polling = select.epoll()
    sockets: dict[int, socket.socket] = {}
    try:
        for _ in range(connections):
            one = socket.create_connection(("127.0.0.1", port), timeout=_ANSWER_S)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sockets[one.fileno()] = one
            polling.register(one.fileno(), select.EPOLLIN)
        return _ask(polling, sockets, requests, seconds)
    finally:
        polling.close()
        for one in sockets.values():
            one.close()


def _ask(polling: select.epoll, sockets: dict[int, socket.socket], requests: list[bytes], seconds: float) -> Load:
    clock = time.perf_counter
    sent_at: dict[int, float] = {}
    came: dict[int, bytes] = {}
    taken: list[float] = []
    began_at = clock()
    for number, one in sockets.items():
        sent_at[number] = clock()
        one.send(requests[number % len(requests)])
    while clock() < began_at + seconds:
        ready = polling.poll(_ANSWER_S)
        if not ready:
            raise NoAnswer(f"no answer from the server for {_ANSWER_S:g} s")
        for number, _ in ready:
            answer = came.pop(number, b"") + sockets[number].recv(_ANSWER_BYTES)
            if not answer.startswith(b"HTTP/1.1 200 "):
                raise NoAnswer(f"the server answered {answer[:200]!r}")
            if not _is_whole(answer):
                came[number] = answer
                continue
            now = clock()
            taken.append(now - sent_at[number])
            sent_at[number] = now
            sockets[number].send(requests[len(taken) % len(requests)])
    elapsed_s = clock() - began_at
    taken.sort()
    return Load(len(taken) / elapsed_s, taken[len(taken) // 2] * 1e3, taken[int(len(taken) * 0.99)] * 1e3)


def _is_whole(answer: bytes) -> bool:
    """True when the body is as long as the head says: a server may send the two apart."""
    at = answer.find(b"content-length: ")
    end = answer.find(b"\r\n\r\n")
    if at < 0 or end < at:
        return False
    return len(answer) - end - 4 >= int(answer[at + 16 : answer.index(b"\r", at)])
