"""What is hidden of texts and values, and what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.cli import app
from bus.redaction import redacted, shown
from bus.settings import SettingsError, load_settings

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJlLW9m"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"token {JWT} refused", "token (hidden) refused"),
        ("Authorization: Bearer abcdef0123456789", "Authorization: Bearer (hidden)"),
        ("no route to redis://user:pw@host:6379/0", "no route to redis://(hidden)@host:6379/0"),
        ("postgres://host/db?password=pw&x=1", "postgres://host/db?password=(hidden)&x=1"),
        ("Login(username='a', password='two words', n=1)", "Login(username='a', password=(hidden), n=1)"),
        ("""{"password": "a\\"b", "n": 1}""", """{"password": (hidden), "n": 1}"""),
        ("{'api_key': 'k', 'n': 1}", "{'api_key': (hidden), 'n': 1}"),
        ("PASSWORD=pw next", "PASSWORD=(hidden) next"),
    ],
)
def test_a_secret_within_a_text_is_hidden(text: str, expected: str) -> None:
    """By its shape, or by the name before it; a second time changes nothing."""
    assert redacted(text) == expected
    assert redacted(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "worker joined",
        "field 'max_tokens' is 5, allowed: 1..4096",
        "token: is missing",
        "https://example.org/a/b?c=d and user@example.org",
        "the password is too short",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    """Sentences that only speak of secrets are left as they are."""
    assert redacted(text) == text


def test_values_are_hidden_by_name_at_any_depth() -> None:
    """Texts under a secret's name; numbers never, for `tokens` are also counted."""
    value = {"user": "a", "password": "pw", "inner": [{"apiKey": "k", "tokens": 17}], "url": "http://u:p@h/"}

    told = shown("request", value)

    assert told == {
        "user": "a",
        "password": "(hidden)",
        "inner": [{"apiKey": "(hidden)", "tokens": 17}],
        "url": "http://(hidden)@h/",
    }


def test_a_webhook_keeps_its_host_only() -> None:
    """Its path lets in whoever knows it."""
    told = shown("errors.webhooks", ("https://hooks.example.org/services/T0/B0/x", "http://u:p@host:1/x?y"))

    assert told == ["https://hooks.example.org/(hidden)", "http://(hidden)@host:1/(hidden)"]


@pytest.mark.parametrize("value", [12345678, ["hunter2"], {"a": "hunter2"}])
def test_a_wrong_secret_is_refused_without_being_shown(value: object) -> None:
    """The complaint names the setting and its place only."""
    with pytest.raises(SettingsError) as refused:
        load_settings(overrides={"bus.token": value})

    assert "bus.token = (hidden) is not allowed" in str(refused.value)
    assert "hunter2" not in str(refused.value)
    assert "12345678" not in str(refused.value)


@pytest.mark.parametrize(
    "text", ["bus: {token: 'hunter2", "bus:\n  token: hunter2\n bad", "bus:\n  token: !!int hunter2"]
)
def test_a_broken_file_is_refused_without_showing_its_lines(tmp_path: Path, text: str) -> None:
    """A password may stand in any of them; the number of the line is told."""
    path = tmp_path / "olympus.yaml"
    path.write_text(text)

    with pytest.raises(SettingsError) as refused:
        load_settings(path)

    assert str(path) in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_config_show_hides_every_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Tokens, passwords within addresses and the paths of webhooks, as a table and as JSON."""
    monkeypatch.setenv("OLYMPUS_BUS_TOKEN", "hunter2-token-0123456789")
    path = tmp_path / "olympus.yaml"
    path.write_text(
        "memory: {redis_url: 'redis://u:hunter2@h:1/0'}\nerrors: {webhooks: ['https://hooks.example.org/T0/hunter2']}\n"
    )

    for flags in ([], ["--json"]):
        assert app.main(["--config", str(path), "config", "show", *flags]) == 0
        told = capsys.readouterr().out
        assert "hunter2" not in told
        assert "https://hooks.example.org/(hidden)" in told


@given(st.text(max_size=200), st.sampled_from(["password='{}'", "x {} y", "'token': '{}'", "http://u:{}@h/"]))
def test_any_text_can_be_redacted(value: str, around: str) -> None:
    """Nothing raises, and what was hidden once stays hidden."""
    once = redacted(around.format(value))

    assert redacted(once) == once


@given(st.recursive(st.none() | st.integers() | st.text(max_size=20), lambda kids: st.lists(kids, max_size=3)))
def test_any_value_can_be_shown(value: object) -> None:
    """What comes out has a form in JSON."""
    told = shown("field", value)

    assert msgspec.to_builtins(told) == told


def test_long_texts_take_no_long_time() -> None:
    """Shapes are looked for in one pass: a text made to go back and forth in is done at once."""
    for text in ("eyJ" * 20_000, "://" * 20_000, "password='" * 6_000, "bearer " * 9_000, "://" + "a" * 60_000):
        assert redacted(text)
