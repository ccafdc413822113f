"""The sign-in of a command that runs on: its token is renewed while it runs, and there is none where none is needed."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from bus.cli import session
from bus.settings import Settings
from schemas.errors import NoWorker


def signed(token: str) -> session.Session:
    """A sign-in with this token."""
    return session.Session(user_id="ada", access_token=token, refresh_token="r", renew_at=0.0)


async def test_a_token_is_renewed_while_the_command_runs_also_after_an_outage(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the client sends is always the newest; a bus that is away ends nothing."""
    answers: list[session.Session | Exception | None] = [
        signed("first"),
        signed("second"),
        NoWorker("away"),
        OSError(28, "no space left on device"),
        signed("third"),
        None,
    ]
    seen: list[str] = []

    async def renewed(settings: Settings) -> session.Session | None:
        seen.append(sign_in._token)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(session, "renewed", renewed)
    monkeypatch.setattr(session, "_LOOK_EVERY_S", 0)
    required = msgspec.structs.replace(settings, auth=msgspec.structs.replace(settings.auth, required=True))
    sign_in = session.SignIn(required)
    await sign_in.begin()
    token = sign_in.token
    assert token is not None
    assert token() == "first"

    async with asyncio.timeout(10):
        await sign_in.keep()

    assert seen == ["", "first", "second", "second", "second", "third"]
    assert token() == ""


async def test_where_no_request_needs_a_token_there_is_none(settings: Settings) -> None:
    """The settings alone say what is sent."""
    sign_in = session.SignIn(settings)
    await sign_in.begin()

    assert sign_in.token is None
    await sign_in.keep()
