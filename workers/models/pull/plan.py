"""What a source turned out to be: the files to fetch, and what the finished model is called."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

# Bytes of a file as a server's index has them: what it says is not trusted to be a size at all.
Size = Annotated[int, Meta(ge=0, le=2**62)]


class RemoteFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file to fetch.

    name: what it is called here, safe as a file name. size_bytes, sha256: as its server's index says, None where it does
    not. is_fixed: the URL always stands for the same content, so what is here of it can be gone on with.
    """

    url: str
    name: str
    size_bytes: int | None = None
    sha256: str | None = None
    is_fixed: bool = False


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that makes one model. is_folder: its files stay together in a folder of the model's name."""

    name: str
    files: list[RemoteFile]
    is_folder: bool = False

    @property
    def size_bytes(self) -> int | None:
        """All files together, None when one of them is not known."""
        sizes = [file.size_bytes for file in self.files]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None
