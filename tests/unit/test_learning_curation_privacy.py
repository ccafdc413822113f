"""Secrets and personal data: what is found, what becomes of the example, and that ordinary text passes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import workers.models.demo
from schemas.bodies.model import ChatMessage, ToolCall
from schemas.errors import DeadlineExceeded, Unprocessable
from workers.learning.curation import finder_process
from workers.learning.curation.drafts import Draft, texts_of
from workers.learning.curation.finder_process import FinderProcess, Found
from workers.learning.curation.finders import find
from workers.learning.curation.privacy import clean

ROOT = Path(__file__).parents[2]

# Put together here, so that no scanner takes this file for a leak.
SECRETS = {
    "AKIA" + "IOSFODNN7EXAMPLE": "token",
    "ghp_" + "a1B2" * 9: "token",
    "github_pat_" + "11ABCDEFG0aBcDeFgHiJkL_" + "a1B2" * 14: "token",
    "sk-" + "ant-api03-" + "a1B2" * 9: "token",
    "xoxb-" + "123456789012-123456789012-abcdefghijABCDEFGHIJ1234": "token",
    "sk_live_" + "a1B2c3D4" * 3: "token",
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9."
    + "eyJzdWIiOiIxMjM0NTY3ODkwIn0."
    + "dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U": "token",
    "hf_" + "aBcDeFgHiJ" * 3 + "kLmN": "token",
}
PEM = "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEabc\nxyz\n-----END RSA PRIVATE KEY-----"
PERSONAL = {
    "anna.lee+x@mail.example.org": "e-mail address",
    "+44 20 7946 0958": "phone number",
    "(415) 555-2671": "phone number",
    "212-736-5000": "phone number",
    "4111 1111 1111 1111": "card number",
    "5500-0055-5555-5559": "card number",
    "DE89 3704 0044 0532 0130 00": "bank account",
    "GB33BUKB20201555555555": "bank account",
    "123-45-6789": "social security number",
}


@pytest.mark.parametrize(("value", "kind"), [*SECRETS.items(), *PERSONAL.items()])
def test_each_kind_is_found_whole_within_a_sentence(value: str, kind: str) -> None:
    """The whole of it and nothing beside it."""
    text = f"Please use {value} for this, thanks."
    assert [(one.kind, text[one.start : one.end]) for one in find(text)] == [(kind, value)]


def test_passwords_are_found_where_a_sentence_or_a_setting_gives_one() -> None:
    """In words, as a setting, and in a URL; a private key to its end."""
    for text, secret in {
        "my password is hunter2abc, ok": "hunter2abc",
        "password = 'hunter2abc'": "hunter2abc",
        "api_key=abcd1234efgh5678": "abcd1234efgh5678",
        "see https://bob:hunter2secret@example.org/x": "hunter2secret",
        f"here:\n{PEM}\nthat was it": PEM,
    }.items():
        (found,) = find(text)
        assert found.is_secret
        assert secret in text[found.start : found.end]


@pytest.mark.parametrize(
    "text",
    [
        "card 4111 1111 1111 1112 and account DE88 3704 0044 0532 0130 00",
        "In 2023-01-20 at 12:30:45 there were 1234567 of 89.5, pi is 3.14159265358979, at 10.0.0.1",
        "I forgot my password and asked for a token of love: the key to happiness",
        "The password is: not told. Secret: nobody knows. api_key: see the manual",
        "Version 1.2.3-4567, room 415-55, order 000-00-0000",
        "commit 2fd4e1c67a2d28fced849ee1bb76e7391b93eb12",
    ],
)
def test_numbers_and_words_that_only_look_so_are_left(text: str) -> None:
    """Check digits decide, and a word about passwords is no password."""
    assert find(text) == []


def test_ordinary_texts_of_this_project_pass() -> None:
    """No false finding in what the demo model says and in the documentation."""
    demo = json.loads((Path(workers.models.demo.__path__[0]) / "documented.json").read_text(encoding="utf-8"))
    texts = [message["content"] for row in demo for message in row["messages"]] + [row["answer"] for row in demo]
    for name in ("memory.md", "models.md", "sessions.md", "cli.md"):
        texts += (ROOT / "docs" / name).read_text(encoding="utf-8").split("\n\n")
    assert [text for text in texts if find(text)] == []


def test_a_long_line_is_searched_to_its_end() -> None:
    """Windows overlap, so that nothing is lost between them."""
    token = "ghp_" + "a1B2" * 9
    for at in (1_970, 1_990, 40_000):
        text = "x" * at + f" {token} " + "y " * 1_000
        assert [text[one.start : one.end] for one in find(text)] == [token]


def draft(question: str, answer: str = "fine", **more: str) -> Draft:
    return Draft(
        model="m", kind="feedback", answer=answer, messages=[ChatMessage(role="user", content=question)], **more
    )


def cleaned(one: Draft) -> tuple[Draft, str, str]:
    return clean(one, [[Found(*found) for found in find(text)] for text in texts_of(one).values()])


def test_a_finding_in_the_question_is_replaced_and_the_row_stays() -> None:
    """The note names kind and field, never the value."""
    kept, quarantine, note = cleaned(draft("Mail anna@example.org and call +44 20 7946 0958"))
    assert kept.messages[0].content == "Mail [e-mail address] and call [phone number]"
    assert (quarantine, note) == (
        "",
        "replaced e-mail address in messages[0].content, phone number in messages[0].content",
    )


def test_a_finding_in_an_answer_keeps_the_row_out() -> None:
    """Personal data stays for a person to look at; a secret is replaced even there."""
    kept, quarantine, _ = cleaned(draft("When?", "Call +44 20 7946 0958"))
    assert (kept.answer, quarantine) == ("Call +44 20 7946 0958", "holds phone number in answer")
    token = next(iter(SECRETS))
    kept, quarantine, _ = cleaned(draft("Key?", f"It is {token}.", rejected=f"{token}?"))
    assert (kept.answer, kept.rejected) == ("It is [token].", "[token]?")
    assert quarantine == "holds token in answer, token in rejected"
    assert token not in quarantine


def test_calls_of_tools_are_cleaned_too() -> None:
    """What a model wrote into a call is text like any other."""
    call = ToolCall(id="1", name="mail", arguments='{"to": "anna@example.org"}')
    messages = [ChatMessage(role="assistant", tool_calls=[call]), ChatMessage(role="user", content="ok")]
    kept, _, _ = cleaned(Draft(model="m", kind="feedback", answer="done", messages=messages))
    assert kept.messages[0].tool_calls[0].arguments == '{"to": "[e-mail address]"}'


async def test_the_process_answers_what_the_finders_find_and_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of one call in their order, also when they take several, and after it was stopped."""
    monkeypatch.setattr(finder_process, "_CALL_CHARACTERS", 50)
    process = FinderProcess()
    try:
        texts = ["nothing", "mail anna@example.org", "", " " * 60, "é +44 20 7946 0958"]
        for _ in range(2):
            found = await process.find(texts)
            assert [[one.kind for one in some] for some in found] == [[], ["e-mail address"], [], [], ["phone number"]]
            assert texts[4][found[4][0].start :] == "+44 20 7946 0958"
            await process.stop()
    finally:
        await process.stop()


async def test_a_process_that_hangs_is_killed_and_one_that_ends_is_told_of(tmp_path: Path) -> None:
    """Neither blocks the service, and neither message quotes a text."""
    hanging, ending, lacking = (tmp_path / name for name in ("hanging.py", "ending.py", "lacking.py"))
    hanging.write_text("import time; time.sleep(60)")
    ending.write_text("import sys; sys.stderr.write(sys.stdin.readline()); sys.exit(1)")
    lacking.write_text("import no_such_package_at_all")
    cases = [
        (hanging, DeadlineExceeded, "took over"),
        (ending, Unprocessable, "ended"),
        (lacking, Unprocessable, "install"),
    ]
    for program, error, words in cases:
        process = FinderProcess(program=program, limit_s=0.5 if program is hanging else 20.0, start_s=0.0)
        with pytest.raises(error, match=words) as caught:
            await process.find(["a secret text"])
        assert not re.search("a secret text", str(caught.value))
        await process.stop()
