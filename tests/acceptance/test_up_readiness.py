"""`olympus up` under systemd: it is told when everything is ready, not before."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.acceptance.test_up import TIMEOUT_S, Up


def test_systemd_is_told_once_everything_is_ready(tmp_path: Path) -> None:
    """The datagram comes from the process that systemd started, after the line that people see."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(TIMEOUT_S)
        up = Up(tmp_path / "home", "--only", "broker")
        up.environment["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        try:
            up.start()
            assert listening.recv(200) == b"READY=1\nSTATUS=everything is ready"
            up.wait_for_line("Olympus is ready: broker")
        finally:
            up.end()
