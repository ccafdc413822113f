"""Access tokens: signed JWTs (RFC 7519) of our own making, read back with nothing in them taken on trust.

Which key, and with it which algorithm, follows from `kid` alone. Times are compared with the clock that is handed in,
which does not go back; the library would read the wall clock.
"""

from __future__ import annotations

import secrets
from typing import Final

import msgspec

from workers.memory.accounts.keys import Key, KeyRing

ISSUER: Final = "olympus"
AUDIENCE: Final = "olympus"

_REQUIRED: Final = ("iss", "aud", "sub", "jti", "iat", "nbf", "exp", "fam", "scopes", "ns")


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """What a token says. sub: the user. fam: the sign-in it comes from. ns: namespace patterns."""

    iss: str = ISSUER
    aud: str = AUDIENCE
    sub: str
    jti: str
    iat: float
    nbf: float
    exp: float
    fam: str
    scopes: tuple[str, ...]
    ns: tuple[str, ...]


class BadToken(Exception):
    """A token is no good; `reason` is "expired", "not valid yet", or "forged" for one that nobody here signed."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def sign(key: Key, claims: Claims) -> str:
    """The token that makes these claims."""
    import jwt

    payload = msgspec.to_builtins(claims)
    return jwt.encode(payload, key.signing, algorithm=key.algorithm, headers={"kid": key.kid})


def new_claims(
    user: str, family: str, scopes: tuple[str, ...], namespaces: tuple[str, ...], *, now: float, ttl_s: float
) -> Claims:
    """Claims good from now on, for `ttl_s` seconds."""
    return Claims(
        sub=user,
        jti=secrets.token_urlsafe(12),
        iat=now,
        nbf=now,
        exp=now + ttl_s,
        fam=family,
        scopes=scopes,
        ns=namespaces,
    )


def read(keys: KeyRing, token: str, now: float, *, is_expired_good: bool = False) -> Claims:
    """The claims of a token that one of `keys` signed. Raises BadToken."""
    import jwt

    try:
        kid = jwt.get_unverified_header(token).get("kid")
        key = keys.find(kid) if isinstance(kid, str) else None
        if key is None:
            raise BadToken("forged")
        payload = jwt.decode(
            token,
            key.verifying,
            algorithms=[key.algorithm],
            issuer=ISSUER,
            audience=AUDIENCE,
            options={"require": list(_REQUIRED), "verify_exp": False, "verify_nbf": False, "verify_iat": False},
        )
        claims = msgspec.convert(payload, Claims)
    except (jwt.PyJWTError, msgspec.ValidationError, ValueError, RecursionError) as error:
        raise BadToken("forged") from error
    if now >= claims.exp and not is_expired_good:
        raise BadToken("expired")
    if now < claims.nbf:
        raise BadToken("not valid yet")
    return claims
