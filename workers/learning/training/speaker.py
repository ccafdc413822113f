"""The trainer's voice: messages for the service on a pipe of their own, which nothing else writes to."""

from __future__ import annotations

from typing import BinaryIO

from workers.learning.training.messages import Message, encode


class Speaker:
    """Says messages. is_quiet: for the processes of a training that are not the first."""

    def __init__(self, pipe: BinaryIO, *, is_quiet: bool = False) -> None:
        self._pipe = pipe
        self._is_quiet = is_quiet

    def say(self, message: Message) -> None:
        """Say it at once. A service that no longer listens is going away, and takes this process with it."""
        if not self._is_quiet:
            try:
                self._pipe.write(encode(message))
            except BrokenPipeError:
                self._is_quiet = True
