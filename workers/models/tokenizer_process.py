"""The model service's end of the tokenizer process: started when first asked, ended when nobody has asked for a while."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import PIPE, Process
from typing import Final

import msgspec

from bus.settings import child_environment
from schemas.errors import Internal, Unprocessable, Unsupported
from workers.models.tokenizer import LENGTH, TextTokens, TokenizeTexts

# Seconds without a request after which the process is ended: it holds a vocabulary, and starts again within a second.
IDLE_S: Final = 60.0

# Seconds for one request. The largest body takes some 20; past that the process hangs.
REQUEST_S: Final = 60.0

_decode = msgspec.msgpack.Decoder(TextTokens).decode


class TokenizerProcess:
    """One tokenizer process, whose requests wait for each other. A request that ends it does not end the next one."""

    def __init__(self, idle_s: float = IDLE_S, request_s: float = REQUEST_S) -> None:
        self._idle_s = idle_s
        self._request_s = request_s
        self._process: Process | None = None
        self._lock = asyncio.Lock()
        self._idle: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Its process id, None while it does not run."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def tokenize(self, name: str, path: str, texts: list[str], *, with_tokens: bool) -> TextTokens:
        """Tokens of each text by the vocabulary of the file at `path`, which belongs to the model `name`.

        Raises Unprocessable for a file without a usable vocabulary, Internal when the process crashed or hung over it,
        Unsupported without llama-cpp-python.
        """
        async with self._lock:
            if self._idle is not None:
                self._idle.cancel()
            try:
                async with asyncio.timeout(self._request_s):
                    answer = await self._ask(TokenizeTexts(path=path, texts=texts, with_tokens=with_tokens))
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                how = await self._end()
                raise Internal(f"the tokenizer of {name} crashed ({how})", model=name) from error
            except TimeoutError as error:
                await self._end()
                raise Internal(
                    f"the tokenizer of {name} did not answer in {self._request_s:g} s", model=name
                ) from error
            except asyncio.CancelledError:
                # Its answer would be read as the next one's.
                await self._end()
                raise
            self._idle = asyncio.get_running_loop().call_later(self._idle_s, self._on_idle)
        if answer.is_missing:
            raise Unsupported(answer.error)
        if answer.error:
            raise Unprocessable(f"{name} has no usable vocabulary: {answer.error}", model=name)
        return answer

    async def stop(self) -> None:
        """End the process."""
        if self._idle is not None:
            self._idle.cancel()
        if self._ending is not None:
            await self._ending
        await self._end()

    async def _ask(self, request: TokenizeTexts) -> TextTokens:
        process = self._process
        if process is None or process.returncode is not None:
            process = self._process = await self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        body = msgspec.msgpack.encode(request)
        process.stdin.write(LENGTH.pack(len(body)) + body)
        await process.stdin.drain()
        (size,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
        return _decode(await process.stdout.readexactly(size))

    async def _start(self) -> Process:
        try:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "workers.models.tokenizer",
                "--parent",
                str(os.getpid()),
                stdin=PIPE,
                stdout=PIPE,
                # Ctrl-C in a terminal reaches the service, which then decides.
                start_new_session=True,
                env=child_environment(None, {}),
            )
        except OSError as error:
            raise Internal(f"the tokenizer could not be started: {error.strerror or error}") from error

    def _on_idle(self) -> None:
        self._ending = asyncio.get_running_loop().create_task(self._end_idle(), name="end tokenizer")

    async def _end_idle(self) -> None:
        async with self._lock:
            await self._end()

    async def _end(self) -> str:
        """Kill the process and say how it had ended before that."""
        process, self._process = self._process, None
        if process is None:
            return "it did not run"
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        status = await process.wait()
        return f"signal {-status}" if status < 0 else f"exit code {status}"
