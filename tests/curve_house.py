"""A broker that listens in clear on this machine and encrypted for another, with the keys of both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from broker.server import Broker
from bus.keys import Keys
from bus.permissions import Permissions
from bus.settings import Settings, load_settings
from tests.conftest import settings_of


class House(NamedTuple):
    """A broker on 127.0.0.1 in clear and on 127.0.0.2 encrypted; what a machine there and one elsewhere would set."""

    here: Settings
    elsewhere: Settings
    keys: Keys
    keys_elsewhere: Keys
    broker: Broker

    def machine(self, name: str, allowed: Permissions | None) -> Settings:
        """What a further machine would set, which the broker's trusts by that name with these permissions."""
        settings = msgspec.structs.replace(self.elsewhere, home=f"{self.elsewhere.home}-{name}")
        keys = Keys(settings)
        public = keys.make().public
        keys.trust("mainpc", self.keys.own().public)
        self.keys.allow(name, allowed)
        self.keys.trust(name, public)
        return settings


@asynccontextmanager
async def house_of(settings: Settings, tmp_path: Path, *, is_traded: bool = True) -> AsyncIterator[House]:
    """Both machines have keys; with `is_traded` each trusts the other's."""
    listening = msgspec.structs.replace(settings, bus=msgspec.structs.replace(settings.bus, listen=("127.0.0.2",)))
    keys = Keys(settings)
    public = keys.make().public
    running = Broker(listening)
    await running.start()
    try:
        here = settings_of(running)
        ports = {f"bus.{name}_port": port for name, port in running.ports._asdict().items()}
        elsewhere = load_settings(
            None,
            {
                **ports,
                "home": str(tmp_path / "elsewhere"),
                "machine.addresses": "mainpc=127.0.0.2",
                "bus.host": "mainpc",
                "bus.server_key": "mainpc",
            },
        )
        house = House(here, elsewhere, keys, Keys(elsewhere), running)
        if is_traded:
            keys.trust("pc2", house.keys_elsewhere.make().public)
            house.keys_elsewhere.trust("mainpc", public)
        yield house
    finally:
        await running.stop()
