"""What makes two errors the same."""

from __future__ import annotations

import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.errors import fingerprint

OURS = """Traceback (most recent call last):
  File "{root}/bus/worker.py", line {line}, in _serve
    reply = await served.function(request, call)
  File "{root}/lib/python3.11/site-packages/msgspec/json.py", line 7, in decode
  File "{root}/workers/memory/store.py", line {line}, in get
    raise ValueError
ValueError: no row {line}
"""


def of(message: str = "m", stack: str = "", service: str = "memory", kind: str = "ValueError") -> str:
    return fingerprint.of(service, kind, message, stack)


@pytest.mark.parametrize(
    ("message", "normal"),
    [
        ("no row 17 of 1,024.5", "no row <n> of <n>"),
        ("took 12 ms, then 3.5s and 90% of 4KiB", "took <n>, then <n> and <n> of <n>"),
        ("gpu0 at 0x7ffe12ab", "gpu<n> at <n>"),
        ("request 9f0c2b66a1d04e55 is gone", "request <id> is gone"),
        ("id 123e4567-e89b-12d3-a456-426614174000", "id <id>"),
        ("cannot open /var/lib/olympus/x.db: denied", "cannot open <path>: denied"),
        ("cannot open ~/x or ./y or C:\\data\\z", "cannot open <path> or <path> or <path>"),
        ("no key 'greeting' in \"kv\" and `x`", "no key <text> in <text> and <text>"),
        ("it isn't the model's fault", "it isn't the model's fault"),
        ("no answer from pc2:7000 or 10.0.0.7:7001 or http://x/y?k=s", "no answer from <address> or <address> or <address>"),
        ("mail to ada@example.org failed", "mail to <address> failed"),
        ("two\n  lines\tand blanks ", "two lines and blanks"),
        ("1234567 and 12345678", "<n> and <n>"),
    ],
)  # fmt: skip
def test_a_message_is_compared_without_its_particulars(message: str, normal: str) -> None:
    """Numbers, ids, paths, quoted texts, addresses and durations are stood in for."""
    assert fingerprint.normal(message) == normal


def test_errors_that_differ_in_particulars_alone_are_one() -> None:
    """Other numbers in the message and in the traceback, another folder: the same fingerprint."""
    first = of("no row 17 in '/a'", OURS.format(root="/opt/olympus", line=17))
    second = of("no row 4 in '/b'", OURS.format(root="/home/me", line=230))

    assert first == second
    assert len(first) == 16


@pytest.mark.parametrize(
    "other",
    [
        of(service="model"),
        of(kind="KeyError"),
        of("n"),
        of(stack=OURS.format(root="", line=1)),
    ],
)
def test_errors_that_differ_in_kind_are_two(other: str) -> None:
    """Service, kind, words and stack each tell errors apart."""
    assert of() != other


def test_frames_of_libraries_do_not_count_where_there_are_others() -> None:
    """Libraries may change their insides."""
    assert fingerprint.stack(OURS.format(root="/x", line=1)) == "worker.py:_serve\nstore.py:get"


def test_frames_of_libraries_count_where_there_is_nothing_else() -> None:
    """Code that a library runs by itself is told by what the library did."""
    stack = '  File "/usr/lib/python3.11/threading.py", line 3, in run\n  File "<frozen x>", line 9, in find\n'

    assert fingerprint.stack(stack) == "threading.py:run\n<frozen x>:find"


def test_a_worker_of_somebody_else_is_told_by_its_own_functions() -> None:
    """Its errors come through our runtime, which is the same for all of them."""
    stack = '  File "/opt/olympus/bus/worker.py", line 3, in _serve\n  File "/home/me/oven.py", line 9, in {}\n'

    assert fingerprint.stack(stack.format("heat")) != fingerprint.stack(stack.format("cool"))
    assert fingerprint.where(stack.format("heat")) == "oven.py:9 heat"


def test_an_agent_that_is_no_worker_is_told_by_its_own_functions() -> None:
    """Also one that uses nothing of ours."""
    stack = '  File "/home/me/agent.py", line 3, in main\n  File "/home/me/talk.py", line 9, in say\n'

    assert fingerprint.stack(stack) == "agent.py:main\ntalk.py:say"
    assert fingerprint.where(stack) == "talk.py:9 say"


def test_a_function_that_calls_itself_counts_once() -> None:
    """Recursion of any depth is one error."""

    def down(depth: int) -> str:
        if not depth:
            return "".join(traceback.format_stack())
        return down(depth - 1)

    assert fingerprint.stack(down(3)) == fingerprint.stack(down(60))


def test_a_stack_that_is_not_pythons_counts_by_its_last_lines() -> None:
    """As messages do, without numbers."""
    one = "TypeError: x\n    at say (/srv/a.js:3:14)\n    at main (/srv/a.js:9:1)"
    other = "TypeError: x\n    at say (/opt/a.js:4:1)\n    at main (/opt/a.js:99:1)"

    assert fingerprint.stack(one) == fingerprint.stack(other) != ""


def test_the_place_is_the_innermost_in_our_code() -> None:
    """As a path below the packages, with line and function."""
    assert fingerprint.where(OURS.format(root="/opt/o", line=120)) == "workers/memory/store.py:120 get"
    assert fingerprint.where("") == ""


@given(st.text(max_size=3_000), st.text(max_size=3_000))
def test_any_text_has_a_fingerprint(message: str, stack: str) -> None:
    """Whatever strangers send; and no digit survives."""
    assert len(of(message, stack)) == 16
    assert not any(one.isdecimal() for one in fingerprint.normal(message))


@given(st.integers(0, 10**18), st.integers(0, 10**18), st.sampled_from(["slot {} of 8", "took {}ms", "x={}", "a/{} b"]))
def test_numbers_never_tell_errors_apart(one: int, other: int, words: str) -> None:
    """Any two of them."""
    assert of(words.format(one)) == of(words.format(other))


@pytest.mark.parametrize("hostile", ["'" * 100_000, "a." * 50_000, "/" * 100_000, "0" * 100_000, "a-" * 50_000, "\\" * 90_000, "[:" * 50_000])  # fmt: skip
def test_a_hostile_text_is_bounded(hostile: str) -> None:
    """Only its first characters are looked at, so its end changes nothing."""
    assert of(hostile, hostile) == of(hostile + "x", hostile)
