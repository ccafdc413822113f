"""Bodies of `auth.*` and `trust.*`. Times are Unix epoch seconds."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from schemas.bodies.base import Empty, Key, PageSize, Reply, Request, SecretReply, SecretRequest

# `$` alone also matches before a newline at the end.
# No dot: `user.<name>.*` names the namespaces of one person, and so must not hold those of another.
UserName = Annotated[str, Meta(min_length=1, max_length=48, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$(?!\n)")]
# At least eight characters and no rule about their kinds: NIST SP 800-63B, section 3.1.1.2.
NewPassword = Annotated[str, Meta(min_length=8, max_length=1024)]
Password = Annotated[str, Meta(min_length=1, max_length=1024)]
Token = Annotated[str, Meta(min_length=1, max_length=8192)]
# `memory:read`; `memory:*` for every access to a service; `admin` for everything.
Scope = Annotated[str, Meta(max_length=64, pattern=r"^(admin|[a-z][a-z0-9_]*:(\*|[a-z][a-z0-9_]*))$(?!\n)")]
# A namespace, the start of several with a trailing `*`, or `*` for all.
NamespacePattern = Annotated[str, Meta(max_length=65, pattern=r"^(\*|[A-Za-z0-9_.:-]+\*?)$(?!\n)")]
# A token that names all of them must fit into the headers of a request, 8 KiB.
Scopes = Annotated[list[Scope], Meta(max_length=24)]
NamespacePatterns = Annotated[list[NamespacePattern], Meta(max_length=24)]


class Register(SecretRequest, frozen=True, kw_only=True):
    """Sign oneself up: read and write access to the namespaces `user.<name>` and `user.<name>.*`, if nobody used them.

    A name is free where no user has or had it, and nothing is kept in its namespaces.
    """

    user_id: UserName
    password: NewPassword


class Login(SecretRequest, frozen=True, kw_only=True):
    user_id: UserName
    password: Password


class Verify(SecretRequest, frozen=True, kw_only=True):
    """What an access token stands for now. A token that is no good is an answer too: `valid` False, with the reason."""

    token: Token


class Refresh(SecretRequest, frozen=True, kw_only=True):
    """Trade a refresh token, once, for a new pair."""

    refresh_token: Token


class Logout(SecretRequest, frozen=True, kw_only=True):
    """End the sign-in of an access or refresh token, good or not; `everywhere` all of its user's, by one that is good."""

    token: Token
    everywhere: bool = False


class PasswordChange(SecretRequest, frozen=True, kw_only=True):
    """Change one's own password; ends every sign-in of the user."""

    user_id: UserName
    password: Password
    new_password: NewPassword


class UserAdd(SecretRequest, frozen=True, kw_only=True):
    """Without `scopes` and `namespaces` as who registers; `admin` gives all; `take_over` allows a deleted user's name.

    Also one in whose namespaces anything is kept. What is stored by the name then belongs to the new user.
    """

    user_id: UserName
    password: NewPassword
    admin: bool = False
    scopes: Scopes | None = None
    namespaces: NamespacePatterns | None = None
    take_over: bool = False


class UserList(Empty, frozen=True):
    """Every user."""


class UserUpdate(SecretRequest, frozen=True, kw_only=True):
    """Only what is given changes. A new password and `disabled` end every sign-in of the user."""

    user_id: UserName
    password: NewPassword | None = None
    scopes: Scopes | None = None
    namespaces: NamespacePatterns | None = None
    disabled: bool | None = None


class UserDelete(Request, frozen=True, kw_only=True):
    """End every sign-in of the user and forget the outcomes reported. What the user stored stays, the name with it."""

    user_id: UserName


class TokenIssue(Request, frozen=True, kw_only=True):
    """An access token for a program that cannot sign in, good for `ttl_s` seconds and for as long as its user is."""

    user_id: UserName
    ttl_s: Annotated[float, Meta(gt=0, le=366 * 86_400)] = 30 * 86_400


class KeyRotate(Request, frozen=True, kw_only=True):
    """Sign with a new key from now on; `revoke` drops the old ones at once, and with them every access token."""

    revoke: bool = False


class User(Reply, frozen=True, kw_only=True):
    """`failed_sign_ins` counts those since the last success."""

    user_id: str
    scopes: list[str]
    namespaces: list[str]
    disabled: bool
    created_at: float
    updated_at: float
    last_sign_in_at: float | None = None
    failed_sign_ins: int = 0
    sessions: int = 0


class Users(Reply, frozen=True, kw_only=True):
    users: list[User]


class UserDeleted(Reply, frozen=True, kw_only=True):
    user_id: str
    deleted: bool


class Tokens(SecretReply, frozen=True, kw_only=True):
    """`refresh_token` is empty for an issued token, which cannot be renewed."""

    access_token: str
    refresh_token: str
    user_id: str
    scopes: list[str]
    namespaces: list[str]
    expires_at: float
    expires_in_s: float
    refresh_expires_at: float | None = None


class TokenState(Reply, frozen=True, kw_only=True):
    """Who is behind a token. `rate_per_s` is None for callers without a limit; `reason` says why it is not valid."""

    valid: bool
    user_id: str = ""
    scopes: list[str] = []
    namespaces: list[str] = []
    expires_in_s: float = 0.0
    rate_per_s: float | None = None
    reason: str = ""


class LoggedOut(Reply, frozen=True, kw_only=True):
    """`sessions` is how many sign-ins ended."""

    user_id: str
    sessions: int


class KeyRotated(Reply, frozen=True, kw_only=True):
    """`kid` names the key that signs now; `verifying` those whose tokens are still good, it among them."""

    kid: str
    algorithm: str
    verifying: list[str]


class AuthRevoked(Reply, frozen=True, kw_only=True):
    """Event `auth.revoked`: tokens are no good any more. Without a `user_id`, anybody's may be meant."""

    user_id: str
    reason: str


class AuthFailed(Reply, frozen=True, kw_only=True):
    """Event `auth.failed`: a sign-in failed, with the name that was tried. `retry_after_s` is the slow-down."""

    user_id: str
    source: str
    reason: str
    retry_after_s: float = 0.0


class TrustRecord(Request, frozen=True, kw_only=True):
    """One outcome of what somebody, an agent or a model, was trusted with. `weight` says how much it counts."""

    user_id: Key
    success: bool
    weight: Annotated[float, Meta(gt=0, le=10)] = 1.0
    response_time_s: Annotated[float, Meta(ge=0, le=1e9)] | None = None
    note: Annotated[str, Meta(max_length=4096)] = ""


class TrustGet(Request, frozen=True, kw_only=True):
    """The score and the newest `history` outcomes. Somebody never reported on has the score of the prior."""

    user_id: Key
    history: Annotated[int, Meta(ge=0, le=1_000)] = 10


class TrustList(Request, frozen=True, kw_only=True):
    """Scores by name; `after` continues behind that one."""

    limit: PageSize = 100
    after: str | None = None


class TrustOutcome(Reply, frozen=True, kw_only=True):
    success: bool
    weight: float
    response_time_s: float | None
    note: str
    reported_by: str
    at: float


class TrustScore(Reply, frozen=True, kw_only=True):
    """How likely the next outcome is a success, as a Beta posterior.

    `score` is its 5 % quantile, what is as good as certain, so that a newcomer starts low; `upper` its 95 % quantile.
    `outcomes` and `successes` count all reports ever; `history` is newest first.
    """

    user_id: str
    score: float
    mean: float
    upper: float
    outcomes: int
    successes: int
    updated_at: float | None = None
    history: list[TrustOutcome] = []


class TrustPage(Reply, frozen=True, kw_only=True):
    """`next_after` is None on the last page."""

    scores: list[TrustScore]
    next_after: str | None = None


class TrustChanged(Reply, frozen=True, kw_only=True):
    """Event `trust.changed`: an outcome was reported."""

    user_id: str
    success: bool
    score: float
    mean: float
    upper: float
    outcomes: int
