"""Which models this installation has: files under its model roots, read without loading weights, and remote ones.

It reads the disk and the rules, and knows nothing of what is loaded, of hashes or of the bus.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from schemas.bodies.model import Capability, ModelInfo
from schemas.errors import NotFound
from workers.models.described import Described
from workers.models.facts import Facts
from workers.models.found import Found, FoundFile, found_below, stamp_of
from workers.models.gguf_header import UnusableFile
from workers.models.gguf_model import describe_gguf
from workers.models.routing.rules import RemoteModel, Rules
from workers.models.safetensors_model import describe_safetensors

# The demo model ships inside the package, so that a first start needs no download.
SHIPPED_ROOT: Final = Path(__file__).parent / "demo"

# The same pattern as schemas.bodies.model.ModelName, less the slash: a name comes from one file name here.
_NAME: Final = re.compile(r"[A-Za-z0-9_+:-][A-Za-z0-9._:+-]{0,127}", re.ASCII)

# What each backend can do with a model that continues texts, beside what the model itself brings.
_OF_BACKEND: Final[Mapping[str, tuple[Capability, ...]]] = {
    "llama.cpp": ("json_schema", "grammar", "adapters"),
    "transformers": ("adapters",),
    "vllm": ("json_schema", "grammar", "adapters"),
}

# Words in the name of a model that was trained on programs.
_CODE: Final = re.compile(r"(^|[^a-z]|star)code", re.IGNORECASE)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A model and what it is made of. found None: a remote one. is_first False: another one has its name."""

    info: ModelInfo
    facts: Facts
    found: Found | None = None
    remote: RemoteModel | None = None
    is_first: bool = True

    @property
    def files(self) -> tuple[FoundFile, ...]:
        return self.found.files if self.found is not None else ()


# Of what was read once: the stamps it was read at, and what came of it (None: no model at all).
_Read = tuple[tuple[FoundFile, ...], Described | str | None]


class Catalogue:
    """The models under `roots`, first root first, and those of the rules.

    A file's name without ".gguf", or a folder's name, is the model's. The first of a name wins; later ones, and files
    that are no usable model, are listed with state "unusable" and the reason, so that nobody searches for a model that
    vanished. `scan` may run in a thread while others read: what they see changes as a whole.

    problem: which roots could not be read at the last scan, "" for none.
    """

    def __init__(self, roots: Sequence[Path], rules: Rules | None = None) -> None:
        self.roots = list(roots)
        self._rules = rules or Rules()
        self._scanning = threading.Lock()
        self._read: dict[Path, _Read] = {}
        self._aliases: dict[str, str] = {}
        self._entries: tuple[Entry, ...] = ()
        self.problem = ""
        self._by_name: dict[str, Entry] = {}

    def scan(self) -> None:
        """Read the roots again. What has the size, time and inode it had is not opened. Blocks on the disk."""
        with self._scanning:
            self.problem = "; ".join(_unreadable(self.roots))
            read: dict[Path, _Read] = {}
            candidates = (found for root in self.roots for found in found_below(root))
            # A root may lie within another one, and what is in both is one model.
            entries = [
                entry
                for found in candidates
                if found.path not in read and (entry := self._entry(found, read)) is not None
            ]
            entries += [self._of_remote(remote) for remote in self._rules.remotes]
            by_name: dict[str, Entry] = {}
            for at, entry in enumerate(entries):
                first = by_name.setdefault(entry.info.name, entry)
                if first is not entry:
                    entries[at] = _hidden(entry, first)
            self._read = read
            self._entries, self._by_name = tuple(entries), by_name

    def use_aliases(self, aliases: Mapping[str, str]) -> None:
        """Let each alias mean a model from now on. A model's own name goes before an alias."""
        self._aliases = dict(aliases)

    def entries(self) -> list[ModelInfo]:
        """Everything found by the last scan, in order of roots and paths."""
        return [self.shown(entry) for entry in self._entries]

    def all(self) -> tuple[Entry, ...]:
        """The same with what they are made of."""
        return self._entries

    def find(self, name: str) -> ModelInfo:
        """The entry of this name or alias; raises NotFound naming the nearest ones."""
        return self.shown(self.entry(name))

    def entry(self, name: str) -> Entry:
        """The same with what it is made of."""
        by_name = self._by_name
        entry = by_name.get(name) or by_name.get(self._aliases.get(name, ""))
        if entry is not None:
            return entry
        remote = self._rules.provider_remote(name)
        if remote is not None:
            # models.provider is an endpoint: what is unknown here may be known there.
            return self._of_remote(remote)
        names = sorted({*by_name, *self._aliases})
        nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        known = nearest or names[:3]
        hint = f", nearest: {', '.join(known)}" if known else ", there is no model at all in the model roots"
        gone = f" ({name} is an alias of it)" if name in self._aliases else ""
        raise NotFound(f"there is no model {self._aliases.get(name, name)!r}{gone}{hint}", model=name, nearest=known)

    def facts(self, name: str) -> Facts:
        """Size and shape of a model, for an estimate; raises NotFound."""
        return self.entry(name).facts

    async def current(self, name: str) -> Entry:
        """The same with its files as they are now: the roots are read again for what is not known, or has changed."""
        with contextlib.suppress(NotFound):
            if not await asyncio.to_thread(self.has_changed, name):
                return self.entry(name)
        await asyncio.to_thread(self.scan)
        return self.entry(name)

    def has_changed(self, name: str) -> bool:
        """True when the files are not what the last scan saw. Blocks on the disk; raises NotFound."""
        return any(stamp_of(file.path) != file.stamp for file in self.entry(name).files)

    def shown(self, entry: Entry) -> ModelInfo:
        """What is known of an entry, with its aliases."""
        aliases = sorted(alias for alias, name in self._aliases.items() if name == entry.info.name)
        if not entry.is_first or not aliases:
            return entry.info
        return msgspec.structs.replace(entry.info, aliases=aliases)

    # One entry

    def _entry(self, found: Found, read: dict[Path, _Read]) -> Entry | None:
        try:
            known = self._read.get(found.path)
            if known is None or known[0] != found.files:
                known = (found.files, _described(found))
            read[found.path] = known
        except OSError as error:
            return _unusable(found, f"cannot be read: {error.strerror or error}")
        match known[1]:
            case None:
                return None
            case str() as reason:
                return _unusable(found, reason)
            case described:
                return Entry(info=self._info(found, described), facts=described.facts, found=found)

    def _info(self, found: Found, described: Described) -> ModelInfo:
        backend = self._rules.backend_for(found.name, found.format)
        return ModelInfo(
            name=found.name,
            family=_printable(described.family),
            format=found.format,
            quantisation=_printable(described.quantisation),
            parameters=described.parameters,
            size_bytes=found.size_bytes,
            context_tokens=described.context_tokens,
            state="available",
            capabilities=list(_capabilities(found.name, described, backend)),
            path=_printable(str(found.path)),
            description=_printable(described.description),
            license=_printable(described.license),
            chat_template=described.shown_template,
            backend=backend,
            weights=_printable(str(found.path))
            if found.format == "safetensors"
            else self._rules.of(found.name).weights,
        )

    def _of_remote(self, remote: RemoteModel) -> Entry:
        info = ModelInfo(
            name=remote.name,
            family="",
            format="remote",
            quantisation="",
            parameters=0,
            size_bytes=0,
            context_tokens=remote.context_tokens or 0,
            state="available",
            capabilities=[*remote.capabilities],
            path=remote.remote.base_url,
            backend=self._rules.backend_for(remote.name, "remote"),
        )
        return Entry(info=info, facts=Facts(weights_bytes=0, context_tokens=info.context_tokens), remote=remote)


def _unreadable(roots: Sequence[Path]) -> Iterable[str]:
    """Why roots show no model. The first one is made when something is put there."""
    for root in roots:
        try:
            os.scandir(root).close()
        except OSError as error:
            if root != roots[0] or not isinstance(error, FileNotFoundError):
                yield f"the model folder {root} cannot be read ({error.strerror or error}): models.roots names it"


def _described(found: Found) -> Described | str | None:
    """What the files say, or why they cannot be used; None for what is no model. Raises OSError."""
    try:
        _check_files(found)
        if found.format == "safetensors":
            return describe_safetensors(found)
        return describe_gguf(found)
    except UnusableFile as error:
        return str(error)


def describe(found: Found) -> Described:
    """What the files say of a model that is about to be taken in. Blocks on the disk.

    Raises UnusableFile where nobody could use it, and OSError.
    """
    described = _described(found)
    if described is None:
        raise UnusableFile("an adapter or an image encoder: it is used with a model, and is none")
    if isinstance(described, str):
        raise UnusableFile(described)
    return described


def check_name(name: str) -> None:
    """Raises UnusableFile for a name that no model's file could have."""
    if not _NAME.fullmatch(name):
        raise UnusableFile(
            f"its name {name[:140]!r} holds characters a model name cannot have (allowed are 1 to 128 of letters, digits,"
            " . _ : + -, no dot first)"
        )


def _check_files(found: Found) -> None:
    check_name(found.name)
    root = found.root.resolve()
    for file in found.files:
        # Not Path.resolve, which ends with a RuntimeError where a link leads to itself.
        target = Path(os.path.realpath(file.path))
        if not target.is_relative_to(root):
            raise UnusableFile(f"{file.path.name} links to {target}, which is outside the model root {found.root}")
        if file.stamp is None:
            # Says why it cannot be looked at.
            file.path.stat()
        if not target.is_file():
            raise UnusableFile(f"{file.path.name} is not a regular file")


def _capabilities(name: str, described: Described, backend: str) -> Iterable[Capability]:
    if described.is_embedding:
        yield "embed"
        return
    yield "generate"
    yield "chat"
    template = described.chat_template
    if template is not None and re.search(r"\btools\b", template):
        yield "tools"
    yield from _OF_BACKEND.get(backend, ())
    if described.can_see and backend == "vllm":
        yield "vision"
    if _CODE.search(name):
        yield "code"


def _hidden(entry: Entry, first: Entry) -> Entry:
    reason = f"hidden by {first.info.path}, which has the same name in an earlier place"
    info = msgspec.structs.replace(entry.info, state="unusable", error=reason)
    return msgspec.structs.replace(entry, info=info, is_first=False)


def _unusable(found: Found, error: str) -> Entry:
    info = ModelInfo(
        name=_printable(found.name),
        family="",
        format=found.format,
        quantisation="",
        parameters=0,
        size_bytes=found.size_bytes,
        context_tokens=0,
        state="unusable",
        path=_printable(str(found.path)),
        error=_printable(error),
    )
    return Entry(info=info, facts=Facts(weights_bytes=0), found=found)


def _printable(text: str) -> str:
    """`text` as UTF-8 can carry it: file names on Linux are bytes, and Python keeps the undecodable ones as halves."""
    return text.encode("utf-8", "replace").decode()
