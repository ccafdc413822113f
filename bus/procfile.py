"""honcho with an output that may be full, slow or gone: lines are lost then, and not the services. For `olympus up`."""

from __future__ import annotations

import io
import sys
from typing import Final, TextIO

from bus.logs import Sink

# What is waited for a slow reader at the end, seconds.
_FLUSH_S: Final = 0.5


class Output(io.TextIOBase):
    """Writes whole lines to `stream` where it takes them, and says later how many it did not take."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._sink = Sink(stream)
        self._begun = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the stream below."""
        return self._stream.encoding

    def isatty(self) -> bool:
        """Whether colours are understood."""
        return self._stream.isatty()

    def write(self, text: str) -> int:
        """Take `text`; never raises, never waits."""
        *lines, self._begun = f"{self._begun}{text}".split("\n")
        for line in lines:
            if self._sink.lost and self._sink.write(f"[{self._sink.lost} lines lost]", lines=0):
                self._sink.lost = 0
            self._sink.write(line)
        return len(text)

    def end(self) -> None:
        """Wait a moment for a slow reader."""
        self._sink.flush(_FLUSH_S)


def main() -> None:
    """`honcho` with the arguments of this process."""
    # Of the machines that start everything at once: the bus itself works without it.
    from honcho.command import main as honcho

    output = Output(sys.stdout)
    sys.stdout = output
    try:
        honcho()
    finally:
        output.end()


if __name__ == "__main__":
    main()
