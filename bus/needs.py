"""What a service waits for, as `machine.services` says it; pure, given who has joined the bus."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Final

from bus.settings import Need, Settings, parse_services

# A line of the Procfile is named for its folder in workers/, a service for the first token of its subjects.
_SERVICES: Final = {"models": "model", "resources": "resource", "errors": "error"}


def service_of(line: str) -> str:
    """The service that a line of the Procfile starts."""
    return _SERVICES.get(line, line)


def needs_of(settings: Settings, service: str) -> tuple[Need, ...]:
    """What `service` waits for; nothing where the settings do not say."""
    declared = parse_services(settings.machine.services)
    return next((needs for line, needs in declared.items() if service_of(line) == service), ())


def missing(needs: Iterable[Need], joined: Set[str]) -> list[Need]:
    """Those of `needs` that are not among the services that have joined; the broker, who told us those, is there."""
    return [need for need in needs if need.service != "broker" and service_of(need.service) not in joined]


def in_words(needs: Iterable[Need]) -> str:
    """`memory on pc2, models`."""
    return ", ".join(f"{need.service} on {need.machine}" if need.machine else need.service for need in needs)
