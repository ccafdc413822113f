"""Binds the operations of `auth.*` and `trust.*` to the accounts."""

from __future__ import annotations

from bus.worker import Call, Worker
from schemas.bodies import accounts as bodies
from workers.memory.accounts.accounts import Accounts


def register(worker: Worker, accounts: Accounts) -> None:
    """Make `worker` answer for the accounts, and know its own callers by them."""
    if worker.authorizer is not None:
        worker.authorizer.verify_with(accounts.verify)
        accounts.on_revoked = worker.authorizer.forget

    @worker.handles("auth.register")
    async def sign_up(request: bodies.Register, call: Call) -> bodies.User:
        return await accounts.register(request, call)

    @worker.handles("auth.login")
    async def login(request: bodies.Login, call: Call) -> bodies.Tokens:
        return await accounts.login(request, call)

    @worker.handles("auth.verify")
    async def verify(request: bodies.Verify, call: Call) -> bodies.TokenState:
        return await accounts.verify(request.token)

    @worker.handles("auth.refresh")
    async def refresh(request: bodies.Refresh, call: Call) -> bodies.Tokens:
        return await accounts.refresh(request, call)

    @worker.handles("auth.logout")
    async def logout(request: bodies.Logout, call: Call) -> bodies.LoggedOut:
        return await accounts.logout(request, call)

    @worker.handles("auth.password")
    async def change_password(request: bodies.PasswordChange, call: Call) -> bodies.User:
        return await accounts.change_password(request, call)

    @worker.handles("auth.issue")
    async def issue(request: bodies.TokenIssue, call: Call) -> bodies.Tokens:
        return await accounts.issue(request, call)

    @worker.handles("auth.user.add")
    async def user_add(request: bodies.UserAdd, call: Call) -> bodies.User:
        return await accounts.user_add(request, call)

    @worker.handles("auth.user.list")
    async def user_list(request: bodies.UserList, call: Call) -> bodies.Users:
        return await accounts.user_list(call)

    @worker.handles("auth.user.update")
    async def user_update(request: bodies.UserUpdate, call: Call) -> bodies.User:
        return await accounts.user_update(request, call)

    @worker.handles("auth.user.delete")
    async def user_delete(request: bodies.UserDelete, call: Call) -> bodies.UserDeleted:
        return await accounts.user_delete(request, call)

    @worker.handles("auth.keys.rotate")
    async def rotate_keys(request: bodies.KeyRotate, call: Call) -> bodies.KeyRotated:
        return await accounts.rotate_keys(request, call)

    @worker.handles("trust.get")
    async def trust_get(request: bodies.TrustGet, call: Call) -> bodies.TrustScore:
        return await accounts.trust_get(request)

    @worker.handles("trust.record")
    async def trust_record(request: bodies.TrustRecord, call: Call) -> bodies.TrustScore:
        return await accounts.trust_record(request, call)

    @worker.handles("trust.list")
    async def trust_list(request: bodies.TrustList, call: Call) -> bodies.TrustPage:
        return await accounts.trust_list(request)
