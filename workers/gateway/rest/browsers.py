"""What web pages may do here: pure rules over the headers that browsers send.

A page of another site can make a browser call a loopback address, or one of the browser's network. So a port that needs no
token answers to its own names alone (a foreign name that was pointed here is not one: DNS rebinding), and what another
site's script starts is refused unless `rest.cors_origins` names that site. Programs send no such headers and notice nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Mapping, Set
from typing import Final
from urllib.parse import urlsplit

from bus.settings import Settings, is_loopback
from schemas.errors import BadRequest, Forbidden
from workers.gateway.rest.response import HeaderPairs, WrongHost

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})

# Headers of ours that a script may send and read; browsers allow the simplest ones by themselves.
_MAY_SEND: Final = "authorization, content-type, idempotency-key, traceparent, tracestate, x-timeout-s"
_MAY_READ: Final = "retry-after, traceparent, www-authenticate, x-request-id"

# Seconds a browser may remember what it was allowed; more than two hours no browser does.
_PREFLIGHT_S: Final = 600

# Host headers remembered as good; there are few, but a caller may write one with any port.
_REMEMBERED: Final = 64


# Names that no public name server answers for, so that no stranger can point one here: RFC 6762 and RFC 8375, the rest as
# home and office networks have them. The same is true of a name without a dot, and of an address.
_LOCAL_SUFFIXES: Final = (".localhost", ".local", ".lan", ".internal", ".home.arpa")


def names_of_house(settings: Settings) -> Set[str]:
    """Names by which machines of other networks may call this one: its own, those of the settings, and those of origins."""
    told = [entry.partition("=")[2].strip() for entry in settings.machine.addresses]
    origins = [urlsplit(origin).hostname or "" for origin in settings.rest.cors_origins]
    return {name.lower() for name in (socket.gethostname(), *told, *origins) if name}


class Browsers:
    """The rules of one port. host: the address it is bound to. origins: sites whose scripts may call; `*` for any.

    names: of this machine, beside those that no stranger can own; None where any name will do, for a token is asked for.
    """

    def __init__(self, host: str, origins: Iterable[str], names: Set[str] | None = frozenset()) -> None:
        self._bound = host.lower()
        self._is_local = is_loopback(host)
        self._names = names
        self._origins = frozenset(origin.lower().rstrip("/") for origin in origins)
        self._good_hosts: set[bytes] = set()

    def check(self, method: str, headers: Mapping[bytes, bytes], version: str, *, is_page: bool) -> None:
        """Raise WrongHost, BadRequest or Forbidden for what no caller in good faith sends.

        is_page: a page for people, which a link of another site may lead to.
        """
        host = headers.get(b"host")
        if host not in self._good_hosts:
            self._check_host(host, version)
        origin = headers.get(b"origin")
        is_cross = headers.get(b"sec-fetch-site") == b"cross-site"
        if origin is None and not is_cross:
            return
        if origin is not None and (self.allows(origin) or _is_same(origin, host)):
            return
        if method == "OPTIONS" or (method in _SAFE and (is_page or not is_cross)):
            # The browser itself keeps the answer from a script that may not have it.
            return
        said = (origin or b"another site").decode("latin-1")[:200]
        raise Forbidden(
            f"a page of {said} may not call this; name its origin in rest.cors_origins to allow it", origin=said
        )

    def _check_host(self, host: bytes | None, version: str) -> None:
        if host is None:
            if version == "1.1":
                raise BadRequest("the header Host is missing (RFC 9112, section 3.2)", field="Host")
            return
        if self._names is not None and not self._is_ours(host):
            said = host.decode("latin-1")[:200]
            ours = "localhost and to its own address alone"
            if not self._is_local:
                ours = "addresses, to names of this network, and to those in machine.addresses and rest.cors_origins"
            raise WrongHost(f"this server is not {said!r}; it answers to {ours}", host=said)
        if len(self._good_hosts) < _REMEMBERED:
            self._good_hosts.add(host)

    def _is_ours(self, host: bytes) -> bool:
        text = host.decode("latin-1").lower()
        name, _, port = text.rpartition(":")
        if not name or not port.isdigit():
            name = text
        name = name.removeprefix("[").removesuffix("]")
        if name in (self._bound, "localhost") or _is_loopback_address(name):
            return True
        return not self._is_local and (name in (self._names or ()) or _is_nobodys(name))

    def allows(self, origin: bytes) -> bool:
        """True for a site whose scripts may call and read."""
        return "*" in self._origins or origin.decode("latin-1").lower() in self._origins

    def headers(self, origin: bytes | None) -> HeaderPairs:
        """What lets a script read the answer; nothing for a site that may not."""
        if origin is None or not self.allows(origin):
            return (("vary", "origin"),) if self._origins else ()
        return (
            ("access-control-allow-origin", origin.decode("latin-1")),
            ("access-control-expose-headers", _MAY_READ),
            ("vary", "origin"),
        )

    def preflight(self, headers: Mapping[bytes, bytes], methods: Iterable[str]) -> HeaderPairs:
        """The answer to a browser that asks before a script's request; nothing for any other OPTIONS."""
        origin = headers.get(b"origin")
        if origin is None or not self.allows(origin) or b"access-control-request-method" not in headers:
            return ()
        return (
            ("access-control-allow-methods", ", ".join(methods)),
            ("access-control-allow-headers", _MAY_SEND),
            ("access-control-max-age", str(_PREFLIGHT_S)),
        )


def _is_same(origin: bytes, host: bytes | None) -> bool:
    return host is not None and origin.lower() in (b"http://" + host.lower(), b"https://" + host.lower())


def _is_nobodys(name: str) -> bool:
    """True for an address, and for a name that no public name server gives out."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name != "" and ":" not in name and ("." not in name or name.endswith(_LOCAL_SUFFIXES))
    return True


def _is_loopback_address(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
