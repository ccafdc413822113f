"""Tells systemd that a service is ready, where systemd started it and waits for that (Type=notify).

Source: sd_notify(3): a datagram to the socket that NOTIFY_SOCKET names.
"""

from __future__ import annotations

import socket

from bus.settings import notify_socket


def say_ready() -> None:
    """Say so; nothing where nobody waits, or where nobody listens any more."""
    address = notify_socket()
    if not address.startswith(("/", "@")):
        return
    # A name that begins with @ is one without a file.
    name = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as told:
        try:
            told.sendto(b"READY=1\nSTATUS=everything is ready", name)
        except OSError:
            # Without systemd there to hear it, nothing depends on it.
            return
