"""The sign-in of this person: OLYMPUS_HOME/auth/session.json, renewed when its access token has run out."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import msgspec

from bus.cli.failures import say
from bus.client import Client
from bus.private_file import write_private
from bus.settings import Settings
from schemas.bodies.accounts import Refresh, Tokens
from schemas.errors import BusError, Unauthenticated

# An access token is renewed this many seconds before its end, so that it lasts for the command.
_MARGIN_S: Final = 30.0

# How often a command that runs on looks whether its token is to be renewed, seconds: within the margin.
_LOOK_EVERY_S: Final = 10.0

# How often it looks whether another command has ended its renewal, seconds.
_LOCK_LOOK_S: Final = 0.02


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """What a sign-in left. `renew_at` is epoch seconds by this machine's clock."""

    user_id: str
    access_token: str
    refresh_token: str
    renew_at: float

    def __repr__(self) -> str:
        return f"Session({self.user_id!r}, ...)"


def session_path(settings: Settings) -> Path:
    """Where it lies."""
    return settings.path("auth", "session.json")


def load(settings: Settings) -> Session | None:
    """The sign-in of this home, None without one."""
    try:
        return msgspec.json.decode(session_path(settings).read_bytes(), type=Session)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        say(f"{session_path(settings)} cannot be used ({error}); sign in again with 'olympus auth login'")
        return None


def save(settings: Settings, tokens: Tokens) -> Session:
    """Keep what a sign-in or its renewal answered. Raises OSError."""
    session = _session_of(tokens)
    write_private(session_path(settings), msgspec.json.encode(session))
    return session


def _session_of(tokens: Tokens) -> Session:
    return Session(
        user_id=tokens.user_id,
        access_token=tokens.access_token,
        refresh_token=tokens.refresh_token,
        renew_at=time.time() + max(tokens.expires_in_s - _MARGIN_S, tokens.expires_in_s / 2),
    )


def forget(settings: Settings) -> None:
    """Drop the sign-in of this home."""
    session_path(settings).unlink(missing_ok=True)


async def renewed(settings: Settings) -> Session | None:
    """The sign-in of this home with an access token that is good now; None without one, or when it has ended."""
    session = load(settings)
    if session is None or session.renew_at > time.time():
        return session
    # One command at a time: a refresh token used twice would end the sign-in.
    async with _locked(settings):
        session = load(settings)
        if session is None or session.renew_at > time.time():
            return session
        try:
            async with Client(settings, name="olympus") as client:
                tokens = await client.request("auth.refresh", Refresh(refresh_token=session.refresh_token))
        except Unauthenticated as error:
            forget(settings)
            say(f"the sign-in of {session.user_id} has ended ({error.message}); 'olympus auth login' begins one")
            return None
        try:
            return save(settings, tokens)
        except OSError as error:
            # What is kept there is worth nothing any more: a refresh token used twice ends the sign-in.
            say(
                f"the sign-in cannot be kept ({error.strerror}) and lasts for this command; 'olympus auth login' begins one"
            )
            return _session_of(tokens)


async def signed_in(settings: Settings) -> Settings:
    """Settings whose requests carry the sign-in of this home, where requests need a token and none is set."""
    if not settings.auth.required or settings.bus.token:
        return settings
    session = await renewed(settings)
    if session is None:
        return settings
    return msgspec.structs.replace(settings, bus=msgspec.structs.replace(settings.bus, token=session.access_token))


class SignIn:
    """The sign-in of this home for a command that runs on: its token, renewed as long as `keep` runs.

    Without a sign-in, or where none is needed, it changes nothing.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._token = ""

    @property
    def token(self) -> Callable[[], str] | None:
        """What gives the token of each request (`bus.client.Client`); None where the settings alone say it."""
        return (lambda: self._token) if self._token else None

    async def begin(self) -> None:
        """Take up the sign-in. Raises BusError where it cannot be renewed."""
        if self.settings.auth.required and not self.settings.bus.token:
            session = await renewed(self.settings)
            self._token = session.access_token if session is not None else ""

    async def keep(self) -> None:
        """Renew it in time, for ever; returns where there is none to renew, or when it has ended."""
        while self._token:
            await asyncio.sleep(_LOOK_EVERY_S)
            # The bus may be away, or the disk full: it is tried again, and what the token is refused for its request tells.
            with contextlib.suppress(BusError, OSError):
                session = await renewed(self.settings)
                self._token = session.access_token if session is not None else ""


@contextlib.asynccontextmanager
async def _locked(settings: Settings) -> AsyncIterator[None]:
    """One renewal at a time. Looked at again and again: a thread that waits for a process that stands could not be ended."""
    descriptor = os.open(session_path(settings).with_name("session.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_LOCK_LOOK_S)
        yield
    finally:
        os.close(descriptor)
