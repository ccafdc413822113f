"""The files of the page as an ASGI application: read once, served from memory, with the rules a browser is to keep them by.

It knows no bus: the page opens while that is away, and says so itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from workers.gateway.rest.front import Application, Send

ROOT: Final = "/console"

FOLDER: Final = Path(__file__).parent / "static"

# What may be there; a file of another kind is not served.
_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}

# Nothing inline, nothing from elsewhere, in nobody's frame, no form that leaves by itself, no text read as HTML.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; font-src 'self';"
    " manifest-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)

_HEADERS: Final = (
    # Kept, but asked about each time: a new version of the house brings a new page.
    (b"cache-control", b"no-cache"),
    (b"content-security-policy", _POLICY.encode()),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)

# From /console, whatever a proxy puts before it.
_LOCATION: Final = (b"location", b"console/")


class File(NamedTuple):
    """One file. tag: its ETag, quotes and all."""

    body: bytes
    media_type: str
    tag: str


def file_of(body: bytes, media_type: str) -> File:
    """A file with its tag."""
    return File(body, media_type, f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"')


def files_below(folder: Path) -> dict[str, File]:
    """Every file of the page by its path on the server; index.html stands for its folder too."""
    found: dict[str, File] = {}
    for path in sorted(folder.rglob("*")):
        media_type = _TYPES.get(path.suffix)
        if media_type is None or path.is_symlink() or not path.is_file():
            continue
        name = path.relative_to(folder).as_posix()
        found[f"{ROOT}/{name}"] = file_of(path.read_bytes(), media_type)
        if name == "index.html":
            found[f"{ROOT}/"] = found[f"{ROOT}/{name}"]
    return found


class Files:
    """Answers for `paths` and leaves every other path to `others`, the pages of the port."""

    def __init__(self, files: Mapping[str, File], others: Application) -> None:
        self._files = files
        self._others = others
        self.paths = (ROOT, *files)

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        """One GET."""
        path = scope["raw_path"].decode("ascii")
        if path == ROOT:
            await _send(send, 308, (*_HEADERS, _LOCATION))
            return
        file = self._files.get(path)
        if file is None:
            await self._others(scope, receive, send)
            return
        headers = (*_HEADERS, (b"etag", file.tag.encode()))
        if _is_known(dict(scope["headers"]).get(b"if-none-match", b""), file.tag):
            await _send(send, 304, headers)
            return
        await _send(send, 200, ((b"content-type", file.media_type.encode()), *headers), file.body)


def _is_known(sent: bytes, tag: str) -> bool:
    """True where If-None-Match names the tag, weakly too: RFC 9110, section 13.1.2."""
    tags = {part.strip().removeprefix("W/") for part in sent.decode("latin-1").split(",")}
    return tag in tags or "*" in tags


async def _send(send: Send, status: int, headers: tuple[tuple[bytes, bytes], ...], body: bytes = b"") -> None:
    length = () if status == 304 else ((b"content-length", b"%d" % len(body)),)
    start: MutableMapping[str, Any] = {"type": "http.response.start", "status": status, "headers": [*headers, *length]}
    await send(start)
    await send({"type": "http.response.body", "body": body})
