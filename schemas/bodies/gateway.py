"""Bodies of `gateway.*`: what the edges have bound."""

from __future__ import annotations

from typing import Literal

from schemas.bodies.base import Empty, Reply


class GatewayPorts(Empty, frozen=True):
    """Which ports the gateways hold."""


class PortInfo(Reply, frozen=True, kw_only=True):
    """One port of an edge.

    owner: the service, or the replaced agent, it answers for. purpose: what is spoken on it. state: `off` is not
    wanted by the configuration, `yielded` went to another port of the same edge and `taken` to another program, as
    `note` says. port: the number it was to have.
    """

    owner: str
    purpose: Literal["rest", "health", "requests", "events", "errors"]
    protocol: Literal["http", "zeromq"]
    host: str
    port: int
    state: Literal["bound", "off", "yielded", "taken"]
    note: str = ""


class PortList(Reply, frozen=True, kw_only=True):
    """In the order they were opened."""

    ports: list[PortInfo]
