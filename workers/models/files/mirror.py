"""Keeps a copy of the catalogue in MemoryHub, so that whoever searches there finds the models of this installation.

An entry per model under namespace "models" and the model's name. Only what differs is written. Without a memory service
nothing happens; when there is one, what it lacks is brought up.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any, Final

import msgspec

from bus.client import Client
from schemas.bodies.memory import KvDelete, KvList, KvPage, KvSet
from schemas.bodies.model import ModelInfo
from schemas.errors import BusError

log = logging.getLogger("olympus.models")

NAMESPACE: Final = "models"

# Seconds until memory is tried again when it was not there: the first time, and at most.
_RETRY_S: Final = 2.0
_RETRY_MAX_S: Final = 60.0

# Seconds for one request to memory.
_REQUEST_S: Final = 10.0

_PAGE: Final = 500

# Of a model, what other services search for: nothing that changes with each request, and no template.
_FIELDS: Final = (
    "name",
    "family",
    "format",
    "quantisation",
    "parameters",
    "size_bytes",
    "context_tokens",
    "capabilities",
    "path",
    "sha256",
    "description",
    "license",
    "aliases",
    "backend",
    "source",
    "error",
)

_HOST: Final = "host"


class Mirror:
    """The copy. `models` gives what it should hold; `poke` says that this may have changed."""

    def __init__(self, client: Client, models: Callable[[], list[ModelInfo]]) -> None:
        self._client = client
        self._models = models
        self._host = socket.gethostname()
        self._held: dict[str, dict[str, Any]] | None = None
        self._changed = asyncio.Event()

    def poke(self) -> None:
        """Look again soon."""
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled, bring memory up to date after each poke."""
        retry_s = _RETRY_S
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._bring_up()
                retry_s = _RETRY_S
            except BusError as error:
                # What memory holds is unknown from now on: it may come back with another database.
                self._held = None
                log.debug("catalogue not mirrored", extra={"action": "model.mirror.waits", "error": str(error)})
                self._changed.set()
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, _RETRY_MAX_S)

    async def _bring_up(self) -> None:
        wanted = {info.name: self._value(info) for info in self._models()}
        held = self._held if self._held is not None else await self._read()
        for name, value in wanted.items():
            if held.get(name) is None or _without_host(held[name]) != _without_host(value):
                await self._ask("memory.kv.set", KvSet(key=name, value=value, ns=NAMESPACE))
                held[name] = value
        # What another host mirrored there is its own to remove.
        for name in [name for name in held if name not in wanted and held[name].get(_HOST) == self._host]:
            await self._ask("memory.kv.delete", KvDelete(key=name, ns=NAMESPACE))
            del held[name]
        self._held = held

    async def _read(self) -> dict[str, dict[str, Any]]:
        held: dict[str, dict[str, Any]] = {}
        after: str | None = None
        while True:
            page: KvPage = await self._ask("memory.kv.list", KvList(ns=NAMESPACE, limit=_PAGE, after=after))
            held.update({entry.key: entry.value for entry in page.entries if isinstance(entry.value, dict)})
            after = page.next_after
            if after is None:
                return held

    async def _ask(self, subject: str, body: Any) -> Any:
        return await self._client.request(subject, body, timeout_s=_REQUEST_S)

    def _value(self, info: ModelInfo) -> dict[str, Any]:
        return {field: msgspec.to_builtins(getattr(info, field)) for field in _FIELDS} | {_HOST: self._host}


def _without_host(value: dict[str, Any]) -> dict[str, Any]:
    return {key: one for key, one in value.items() if key != _HOST}
