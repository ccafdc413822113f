"""AuthenticationAgent (7116): signing up, in and out; its users are ours, and its tokens stand for sign-ins of ours.

A token of 64 hex digits is kept by its hash, in `legacy.auth.sessions`, with the access and refresh tokens it stands for
sealed under it: no record is worth anything without the token. It ends after a day, with its sign-in, or by logout.
The records are the edge's own, whoever asks: a caller who signs in has no rights yet.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from datetime import datetime
from typing import Any, Final

from schemas.bodies.accounts import Login, Logout, Refresh, Register, Tokens, Verify
from schemas.envelope import Headers
from schemas.errors import BadRequest, BusError, Conflict, QuotaExceeded, Unauthenticated
from workers.gateway.legacy.agent import Action, Agent, Fields, Refused, Reply
from workers.gateway.legacy.agents.sealed import record_key, seal, unseal
from workers.gateway.legacy.agents.turns import Turns
from workers.gateway.legacy.house import House

NAME: Final = "AuthenticationAgent"

# Seconds a token is good for, and before its access token's end from which on that one is renewed.
TOKEN_S: Final = 86_400.0
_RENEW_S: Final = 10.0

# Seconds: clients give up after 5.
_TIMEOUT_S: Final = 4.5

_TOKEN: Final = re.compile(r"[0-9a-f]{64}")

# The names that `schemas.bodies.accounts.UserName` allows, and the characters of a new password.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,47}")
_PASSWORD_CHARACTERS: Final = 8

# Guesses made here do not slow down those who sign in elsewhere.
_HEADERS: Final[Headers] = {"source": "legacy"}

_MISSING: Final = "Missing user_id or password"


def name_of(user_id: str) -> str:
    """The name of ours for any user id: itself where it can be one, else made of its hash."""
    if _NAME.fullmatch(user_id):
        return user_id
    return f"legacy-{hashlib.sha256(user_id.encode(errors='replace')).hexdigest()[:32]}"


def password_of(password: str, *, is_strict: bool) -> str:
    """The password of ours for any password. Too short ones are lengthened, except where rights hang on them."""
    is_short = len(password) < _PASSWORD_CHARACTERS and not is_strict
    return f"legacy-short:{password}" if is_short else password


async def register(ask: Fields, house: House) -> Reply:
    user_id, password = ask.text("user_id"), ask.text("password")
    name = name_of(user_id)
    try:
        await _ask(house, "auth.register", Register(user_id=name, password=_password(password, house)))
    except Conflict as error:
        raise Refused("User already exists") from error
    except QuotaExceeded as error:
        wait_s = error.details.get("retry_after_s", 0)
        raise Refused(
            f"Too many registrations, try again in {max(wait_s, 1):.0f} s", code=error.code, retry_after_s=wait_s
        ) from error
    await _note(house, name, user_id)
    return {"status": "success", "message": "User registered"}


async def login(ask: Fields, house: House) -> Reply:
    user_id, name = ask.text("user_id"), name_of(ask.text("user_id"))
    names = house.own.kept("auth.names")
    try:
        tokens: Tokens = await _ask(
            house, "auth.login", Login(user_id=name, password=_password(ask.text("password"), house))
        )
    except Unauthenticated as error:
        # Ours does not say which of the two it was. Whom this agent never saw, it says it does not know.
        is_known = await names.get(name) is not None
        raise Refused("Invalid password" if is_known else "User not found") from error
    if await names.get(name) is None:
        await _note(house, name, user_id)
    token, now = secrets.token_hex(32), time.time()
    expires_at = min(now + TOKEN_S, tokens.refresh_expires_at or now + TOKEN_S)
    await _put(house, token, {"user_id": user_id, "expires_at": expires_at}, tokens)
    session = {"token": token, "expires_at": datetime.fromtimestamp(expires_at).isoformat()}
    return {"status": "success", "message": "Login successful", "session": session}


async def logout(ask: Fields, house: House) -> Reply:
    """Ends the sign-in itself; also that of a token of ours."""
    token = ask.text("token")
    ended = token
    if _TOKEN.fullmatch(token):
        async with _turns(house).of(record_key(token)):
            known = await _get(house, token)
            await house.own.kept("auth.sessions").drop(record_key(token))
        ended = known["tokens"]["access_token"] if known else ""
    try:
        reply = await _ask(house, "auth.logout", Logout(token=ended)) if ended else None
    except (Unauthenticated, BadRequest):
        reply = None
    if reply is None or reply.sessions == 0:
        raise Refused("Invalid token")
    return {"status": "success", "message": "Logged out"}


async def validate_token(ask: Fields, house: House) -> Reply:
    """Asks whether the sign-in behind it still holds: it may have been ended, or its user disabled."""
    token = ask.text("token")
    try:
        access_token = await access_token_of(token, house) if _TOKEN.fullmatch(token) else token
        is_valid = bool(access_token) and (await _ask(house, "auth.verify", Verify(token=access_token))).valid
    except BadRequest:
        is_valid = False
    return {"status": "success", "valid": is_valid}


async def access_token_of(token: str, house: House) -> str:
    """The access token that a token of 64 hex digits stands for, renewed where it is about to end; "" for none.

    Raises schemas.errors.BusError.
    """
    if not _TOKEN.fullmatch(token):
        return ""
    async with _turns(house).of(record_key(token)):
        known = await _get(house, token)
        if known is None:
            return ""
        if known["tokens"]["expires_at"] - time.time() < _RENEW_S:
            return await _renewed(house, token, known)
        access_token: str = known["tokens"]["access_token"]
        return access_token


async def _renewed(house: House, token: str, known: dict[str, Any]) -> str:
    refresh_token = known["tokens"]["refresh_token"]
    # The same request again is answered again: had this process died before the new pair was kept, the sign-in lives on.
    request_id = hashlib.sha256(refresh_token.encode()).digest()[:16]
    try:
        tokens: Tokens = await _ask(house, "auth.refresh", Refresh(refresh_token=refresh_token), id=request_id)
    except Unauthenticated:
        await house.own.kept("auth.sessions").drop(record_key(token))
        return ""
    await _put(house, token, known["session"], tokens)
    return tokens.access_token


async def _get(house: House, token: str) -> dict[str, Any] | None:
    record = await house.own.kept("auth.sessions").get(record_key(token))
    if record is None or record["expires_at"] <= time.time():
        return None
    session = {key: value for key, value in record.items() if key != "sealed"}
    tokens = await unseal(token, record["sealed"])
    return None if tokens is None else {"session": session, "tokens": tokens}


async def _put(house: House, token: str, session: dict[str, Any], tokens: Tokens) -> None:
    sealed = await seal(
        token,
        {
            "access_token": tokens.access_token,
            "refresh_token": tokens.refresh_token,
            "expires_at": time.time() + tokens.expires_in_s,
        },
    )
    left_s = max(session["expires_at"] - time.time(), 0.001)
    await house.own.kept("auth.sessions").put(record_key(token), {**session, "sealed": sealed}, ttl_s=left_s)


async def _note(house: House, name: str, user_id: str) -> None:
    """This agent knows the user from now on."""
    await house.own.kept("auth.names").put(name, {"user_id": user_id, "at": time.time()})


def _password(password: str, house: House) -> str:
    return password_of(password, is_strict=house.settings.auth.required)


def _turns(house: House) -> Turns:
    return house.state(NAME, Turns)


async def _ask(house: House, subject: str, body: Any, *, id: bytes | None = None) -> Any:
    """These operations take no token; what they are told is who asks."""
    return await house.client.request(subject, body, timeout_s=_TIMEOUT_S, headers=_HEADERS, id=id)


async def health(house: House) -> dict[str, Any]:
    own: dict[str, Any] = {"agent_type": "authentication", "cleanup_thread_alive": await house.is_up("memory")}
    try:
        own["active_sessions"] = await house.own.kept("auth.sessions").count()
        own["registered_users"] = await house.own.kept("auth.names").count()
    except BusError:
        # Its status says already that the memory service is away.
        own["active_sessions"] = own["registered_users"] = 0
    return own


AGENT = Agent(
    name=NAME,
    service="memory",
    kind="authentication",
    ports=(7116,),
    health_ports=(8116,),
    actions={
        "register": Action(register, required=("user_id", "password"), missing=_MISSING),
        "login": Action(login, required=("user_id", "password"), missing=_MISSING),
        "logout": Action(logout, required=("token",), missing="Missing token"),
        "validate_token": Action(validate_token, required=("token",), missing="Missing token"),
    },
    health=health,
)
