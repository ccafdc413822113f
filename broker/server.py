"""The broker's sockets: four ports, each message handed to the exchange."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from broker.admission import Admission
from broker.control import Control
from broker.deadletters import DeadLetters
from broker.eventlog import EventLog
from broker.exchange import Exchange
from broker.rights import Guard
from bus import transport, zmtp
from bus.deadlines import SLOT_S
from bus.keys import Keys
from bus.settings import Settings
from bus.transport import Connection, MakeCodec
from schemas.envelope import Buffer

log = logging.getLogger("olympus.broker")

# How often idle connections are checked; a peer silent for two checks is dropped.
_KEEP_ALIVE_S = 5.0


# Of what a peer calls itself, which every event of it carries.
_NAME_MAX_BYTES = 255

# How long a broker that leaves waits for its workers to leave first.
_BYE_S = 0.3


async def _until(is_true: Callable[[], bool], limit_s: float) -> None:
    """Look every slot of the deadline wheel: what is waited for are sums, and nothing tells of their end."""
    loop = asyncio.get_running_loop()
    end = loop.time() + limit_s
    while not is_true() and loop.time() < end:  # noqa: ASYNC110 - see above
        await asyncio.sleep(SLOT_S)


class Ports(NamedTuple):
    """The ports the broker listens on."""

    request: int
    publish: int
    subscribe: int
    sequenced: int


class _Port(abc.ABC):
    """Peers of one port, whatever address they came to."""

    def __init__(self, exchange: Exchange, admission: Admission) -> None:
        self.exchange = exchange
        self.admission = admission
        self.connections: set[Connection] = set()
        self._changed = asyncio.Event()

    async def empty(self) -> None:
        """Wait until the last connection is gone."""
        while self.connections:
            self._changed.clear()
            await self._changed.wait()

    def on_open(self, connection: Any) -> None:
        address, key = connection.peer.rpartition(":")[0], connection.codec.peer_key
        name = connection.codec.peer_properties.get(transport.NAME_PROPERTY.lower(), b"")
        if name:
            connection.peer = name[:_NAME_MAX_BYTES].decode("utf-8", "replace")
        if key:
            rights = self.admission.rights_of(key)
            self.exchange.guard(connection, Guard(rights, address))
            # Behind what it calls itself stands what it is.
            connection.peer = f"{connection.peer}@{rights.name}"
        self.connections.add(connection)

    @abc.abstractmethod
    def on_messages(self, connection: Any, messages: list[list[Buffer]]) -> None: ...

    def on_oversize(self, connection: Any, frames: list[Buffer], size_bytes: int) -> None:
        self.exchange.on_oversize(connection, frames, size_bytes)

    def on_close(self, connection: Any, reason: str) -> None:
        if connection in self.connections:
            self.connections.discard(connection)
            self._changed.set()
            self.exchange.detach(connection, reason)
        elif connection.codec.refused_key:
            mark = self.admission.on_refused(connection.codec.refused_key, connection.peer)
            self.exchange.auditor.tell_damped(
                "refusal",
                actor=f"key {mark}",
                action="connect",
                outcome="forbidden",
                reason="the key is not trusted",
                address=connection.peer.rpartition(":")[0],
            )

    def drop_untrusted(self) -> None:
        """End the connections of keys that are trusted no more."""
        trusted: dict[bytes, bool] = {}
        for connection in list(self.connections):
            key = connection.codec.peer_key
            if key and not trusted.setdefault(key, self.admission.admits(key)):
                connection.abort("its key is trusted no more")


class _RequestPort(_Port):
    def on_open(self, connection: Any) -> None:
        super().on_open(connection)
        self.exchange.attach(connection)

    def on_messages(self, connection: Any, messages: list[list[Buffer]]) -> None:
        self.exchange.on_requests(connection, messages)


class _PublishPort(_Port):
    def on_open(self, connection: Any) -> None:
        super().on_open(connection)
        # A publisher sends nothing before somebody subscribes; the broker wants everything.
        connection.send(zmtp.subscription(b""))

    def on_messages(self, connection: Any, messages: list[list[Buffer]]) -> None:
        self.exchange.on_published(connection, messages)

    def on_oversize(self, connection: Any, frames: list[Buffer], size_bytes: int) -> None:
        self.exchange.on_oversize_event(connection, size_bytes)


class _EventsPort(_Port):
    def __init__(self, exchange: Exchange, admission: Admission, *, is_sequenced: bool) -> None:
        super().__init__(exchange, admission)
        self._is_sequenced = is_sequenced

    def on_open(self, connection: Any) -> None:
        super().on_open(connection)
        guard = self.exchange.guards.get(connection)
        rights = None if guard is None else guard.rights
        self.exchange.hub.add(connection, is_sequenced=self._is_sequenced, rights=rights)

    def on_messages(self, connection: Any, messages: list[list[Buffer]]) -> None:
        self.exchange.on_subscriptions(connection, messages)

    def on_oversize(self, connection: Any, frames: list[Buffer], size_bytes: int) -> None:
        connection.close("a subscriber may not send bodies")


class Broker:
    """The whole broker in one event loop. Its state lies under `settings.path("broker")`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._servers: list[asyncio.Server] = []
        # Of each server: the connections that have not finished greeting.
        self._greeting: list[dict[Connection, None]] = []
        self._ports: list[_Port] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._admission = Admission(settings)

    async def start(self) -> Ports:
        """Open the log, bind the ports, serve.

        Raises transport.AddressInUse naming the settings key, UnusableKey where encryption is wanted and this machine has
        no good key, and OSError where the state folder cannot be used.
        """
        settings, folder = self.settings, self.settings.path("broker")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        broker = settings.broker
        self.event_log = EventLog(
            folder / "events",
            max_age_s=broker.log_max_age_s,
            max_bytes=broker.log_max_bytes,
            segment_bytes=broker.log_segment_bytes,
            sync_s=broker.log_sync_s,
        )
        last_seq = self.event_log.open()
        self.dead_letters = DeadLetters(
            folder / "dead_letters.db", max_count=broker.dead_letters_max, max_age_s=broker.dead_letters_max_age_s
        )
        self.exchange = Exchange(settings, event_log=self.event_log, dead_letters=self.dead_letters, last_seq=last_seq)
        try:
            self.ports = await self._listen()
        except OSError:
            await self.stop()
            raise
        self._control = Control(self.exchange)
        self._admission.changes()
        await self._control.worker.start()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self.exchange.tick_forever()), loop.create_task(self._keep_alive())]
        log.info("ready", extra={"action": "broker.ready", **self.ports._asdict()})
        return self.ports

    async def drain(self, limit_s: float) -> None:
        """Let requests in flight be answered, for at most `limit_s`: their workers were told to stop at the same time.

        Then workers have a moment to say bye, so that an orderly stop of the house is no loss of its workers.
        """
        core = self.exchange.core
        await _until(lambda: not core.in_flight, limit_s)
        await _until(lambda: len(core.registry.workers) <= 1, min(limit_s, _BYE_S))

    async def stop(self) -> None:
        """Send what is queued, close every port, write what the log still holds."""
        if hasattr(self, "exchange"):
            self.exchange.core.is_stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for server in self._servers:
            server.close()
        if hasattr(self, "_control"):
            await self._control.worker.stop(drain_s=0)
        for port in self._ports:
            for connection in list(port.connections):
                connection.close("the broker stops")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await asyncio.gather(*(port.empty() for port in self._ports))
        for connections in (*(port.connections for port in self._ports), *self._greeting):
            for connection in list(connections):
                connection.abort("the broker stops")
        await self.exchange.settle()
        await asyncio.to_thread(self.event_log.close, self.exchange.hub.last_seq)
        await asyncio.to_thread(self.dead_letters.close)

    async def _listen(self) -> Ports:
        bus = self.settings.bus
        admission = self._admission
        encrypted: MakeCodec = zmtp.Codec
        if bus.listen or bus.server_key:
            encrypted = Keys(self.settings).server_codec(admission.admits)
        addresses = {bus.host: encrypted if bus.server_key else zmtp.Codec, **dict.fromkeys(bus.listen, encrypted)}
        bound = []
        for name, wanted, socket_type, handler in (
            ("request_port", bus.request_port, b"ROUTER", _RequestPort(self.exchange, admission)),
            ("publish_port", bus.publish_port, b"XSUB", _PublishPort(self.exchange, admission)),
            ("subscribe_port", bus.subscribe_port, b"XPUB", _EventsPort(self.exchange, admission, is_sequenced=False)),
            ("sequenced_port", bus.sequenced_port, b"XPUB", _EventsPort(self.exchange, admission, is_sequenced=True)),
        ):
            port = wanted
            for address, codec in addresses.items():
                greeting: dict[Connection, None] = {}
                server, port = await transport.listen(
                    *(address, port, socket_type, handler),
                    key=f"bus.{name}",
                    max_body_bytes=bus.max_body_bytes,
                    codec=codec,
                    greeting=greeting,
                )
                self._servers.append(server)
                self._greeting.append(greeting)
            self._ports.append(handler)
            bound.append(port)
        return Ports(*bound)

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(_KEEP_ALIVE_S)
            self._follow_keys()
            for port in self._ports:
                port.drop_untrusted()
                for connection in [one for one in port.connections if not one.keep_alive()]:
                    connection.abort("silent")

    def _follow_keys(self) -> None:
        """Go by the keys and permissions that stand in the folder now."""
        if not self.exchange.guards and not self.settings.bus.listen:
            return
        if self._admission.refresh():
            self.exchange.on_rights_changed()
        for name, action in self._admission.changes():
            self.exchange.auditor.tell("account", actor="local", action=action, target=name)
