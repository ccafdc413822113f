"""Wire limits: how large one message may be, shared by everything that reads bytes from a socket."""

from __future__ import annotations

from typing import Final

# Largest body a peer may send, bytes. A settings key lowers or raises it per broker; this is the default.
MAX_BODY_BYTES: Final = 64 * 1024 * 1024

# A body up to this many bytes travels inside frame 0, a larger one in a frame of its own. Copying below this size
# is cheaper than a second frame, above it a second frame is cheaper than a copy (measured with scripts/bench_bus.py).
INLINE_BODY_BYTES: Final = 64 * 1024

MAX_SUBJECT_BYTES: Final = 255
MAX_HEADER_BYTES: Final = 8 * 1024

# Id of a request: 16 random bytes made by the client. It is also the idempotency key of a write.
ID_BYTES: Final = 16

# The largest legitimate message is REQ delimiter + subject + body + headers; anything longer is hostile or lost.
MAX_FRAMES: Final = 8

# Nesting allowed in a value whose shape the catalogue leaves open (a key-value entry, metadata).
MAX_VALUE_DEPTH: Final = 64

# A body from outside decodes to at most this many values, containers included, and nests at most this deep. A million
# empty lists are some 70 MB; a body of 64 MiB could hold 67 million of them.
MAX_BODY_VALUES: Final = 1_000_000
MAX_BODY_DEPTH: Final = 512

# Smaller bodies are not counted: at the worst they become some 4 MB, and msgspec itself stops at deep nesting.
CHECKED_BODY_BYTES: Final = 64 * 1024
