"""What `olympus doctor` says about safety: what is bound openly, which files others can read, which keys may everything."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple

from bus.keys import Keys, UnusableKey
from bus.settings import Settings, is_loopback

# Below home, what holds secrets or what people wrote.
_PRIVATE: Final = ("auth", "keys", "broker", "memory", "errors", "learning.db", "models.db")

# Files looked at in each, at most: a doctor does not walk a million of them.
_FILES_MAX: Final = 2_000


class Finding(NamedTuple):
    """One thing looked at, in the words of a doctor's check."""

    name: str
    state: Literal["ok", "missing", "absent"]
    found: str
    advice: str = ""


def findings(settings: Settings) -> Iterator[Finding]:
    """Everything, worst or not."""
    yield _binds(settings)
    yield _files(settings)
    yield from _keys(settings)


def open_binds(settings: Settings) -> list[str]:
    """Settings by which something in clear can be reached from other machines, `KEY = VALUE`."""
    bus = settings.bus
    hosts = {
        # With a server key it is another machine's address, and encrypted.
        "bus.host": "127.0.0.1" if bus.server_key else bus.host,
        "rest.host": settings.rest.host if settings.rest.services else "127.0.0.1",
        "legacy.host": settings.legacy.host if settings.legacy.enabled else "127.0.0.1",
        "exporter.host": settings.exporter.host,
    }
    return [f"{key} = {host}" for key, host in hosts.items() if not is_loopback(host)]


def _binds(settings: Settings) -> Finding:
    opened = open_binds(settings)
    if not opened:
        return Finding("open ports", "ok", "none in clear past this machine")
    signs_in = "" if settings.auth.required else ", and nobody has to sign in"
    advice = "anybody in that network reaches them in clear: docs/security.md says how to close them"
    if not settings.auth.required:
        advice += "; `auth.required: true` asks for a token"
    return Finding("open ports", "absent", f"{', '.join(opened)}{signs_in}", advice)


def _files(settings: Settings) -> Finding:
    home = settings.home_path
    readable = [path for name in _PRIVATE for path in _below(home / name) if _mode(path) & 0o077]
    if readable:
        shown = ", ".join(str(path) for path in readable[:3]) + (", ..." if len(readable) > 3 else "")
        mine = [path for path in readable if not path.is_dir()]
        if mine and _mode(home) & 0o077:
            return Finding("private files", "missing", f"open to other users: {shown}", f"chmod -R go= {home}")
    if _mode(home) & 0o022:
        return Finding("private files", "missing", f"{home} can be written by other users", f"chmod 700 {home}")
    if _mode(home) & 0o077:
        return Finding("private files", "absent", f"{home} can be listed by other users", f"chmod 700 {home}")
    return Finding("private files", "ok", f"{home} is this user's alone")


def _below(path: Path) -> Iterator[Path]:
    if path.is_dir() and not path.is_symlink():
        for count, each in enumerate(path.rglob("*")):
            if count >= _FILES_MAX:
                return
            yield each
    elif path.exists():
        yield path


def _mode(path: Path) -> int:
    """Its permission bits; 0 for what is not there, and for a link, whose own say nothing."""
    try:
        status = path.lstat()
    except OSError:
        return 0
    return 0 if stat.S_ISLNK(status.st_mode) else stat.S_IMODE(status.st_mode)


def _keys(settings: Settings) -> Iterator[Finding]:
    keys = Keys(settings)
    try:
        names = list(keys.trusted())
        if not names or not settings.bus.listen:
            return
        unlimited = [name for name in names if keys.permissions(name) is None]
    except UnusableKey as error:
        yield Finding("rights of keys", "missing", str(error), "docs/security.md")
        return
    if unlimited:
        advice = f"olympus keys allow {unlimited[0]} --role worker --service NAME, or another role"
        yield Finding("rights of keys", "absent", f"may do everything: {', '.join(unlimited)}", advice)
    else:
        yield Finding("rights of keys", "ok", f"each of {len(names)} is limited")
