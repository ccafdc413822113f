"""The commands of docs/rest.md do what the page says."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from bus.settings import Settings
from tests.rest_house import SERVICES, rest_house
from workers.memory.service import service

Serve = Callable[..., AbstractAsyncContextManager[Settings]]

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "rest.md").read_text()
COMMANDS = re.findall(r"^curl .+$", "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)), re.MULTILINE)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not on the path")
async def test_every_command_of_the_page_answers_without_an_error(serve_broker: Serve) -> None:
    """In the order they are shown, on the ports that a test may have."""
    assert len(COMMANDS) > 8
    async with serve_broker() as settings, service(settings) as worker, rest_house(settings) as house:
        await worker.start(10)
        try:
            for command in COMMANDS:
                for number, name in enumerate(SERVICES):
                    command = command.replace(f"localhost:{7010 + number}", f"localhost:{house.port(name)}")
                ran = await asyncio.create_subprocess_exec(
                    *shlex.split(command), "--noproxy", "*", "--fail-with-body", stdout=asyncio.subprocess.PIPE
                )
                said, _ = await asyncio.wait_for(ran.communicate(), 20)
                assert ran.returncode == 0, (command, said)
                if "accept:" not in command:
                    assert isinstance(json.loads(said), dict)
        finally:
            await worker.stop(drain_s=0)
