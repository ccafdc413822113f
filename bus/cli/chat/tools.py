"""The tools that a chat gives its model: memory's own, and two that read the project and nothing outside of it."""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import itertools
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, NamedTuple

import msgspec
from msgspec import Meta

from bus.client import Client
from bus.project_file import FILE_TOOLS, MEMORY_TOOLS
from schemas.bodies.model import Tool, ToolCall
from schemas.bodies.sessions import ToolCall as MemoryCall
from schemas.bodies.sessions import ToolResult, ToolSchemaList, ToolSchemas
from schemas.errors import BusError

# Memory answers in milliseconds; a search with a cold index takes longer. Seconds.
_CALL_S: Final = 15.0

# What one reading of a file gives at most: some 10,000 tokens of code, which is more than small windows hold. Bytes.
READ_BYTES: Final = 32 * 1024
_LINES: Final = 400

# A file is read no further than this for lines far down in it, which takes less than a second. Bytes.
_SEARCHED_BYTES: Final = 64 * 2**20

# Names that one listing gives, and entries it looks at before it stops.
_NAMES: Final = 300
_LOOKED_AT: Final = 20_000

# A file with a null byte in its first bytes is no text (what git goes by too).
_SNIFFED_BYTES: Final = 8_192

# Files that hold passwords and keys. A model may be anywhere, and what it says may be kept.
_SECRET: Final = (
    ".env", ".env.*", "*.env", ".envrc*", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.gpg",
    "*.ppk", "*.ovpn", "*.tfvars", "*.tfvars.json", "*.tfstate", "*.tfstate.*", "kubeconfig", "auth.json",
    "service-account*.json", "service_account*.json", ".my.cnf", ".mylogin.cnf", ".s3cfg", ".boto", ".*_history",
    "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", ".netrc", "_netrc", ".pgpass", ".htpasswd", ".npmrc", ".pypirc",
    ".git-credentials", "credentials", "credentials.*", "secrets", "secrets.*", "*.secret", ".dockercfg",
    ".vault-token",
)  # fmt: skip
_SECRET_FOLDERS: Final = frozenset(
    {".git", ".hg", ".svn", ".ssh", ".gnupg", ".aws", ".kube", ".docker", ".azure", "secrets"}
)

# An example of a file of secrets holds none.
_EXAMPLES: Final = (".example", ".sample", ".template", ".dist", ".pub")

# A copy that an editor or a person left beside it holds what the file does.
_COPIES: Final = ("~", ".bak", ".orig", ".old", ".save")

# Folders that others made: not listed unless they are named.
_MADE: Final = frozenset(
    {
        ".git", "node_modules", "__pycache__", ".venv", "venv", "target", "dist", "build",
        ".mypy_cache", ".ruff_cache", ".pytest_cache", ".tox",
    }
)  # fmt: skip


class Refused(Exception):
    """A call that is wrong or not allowed; its text is for the model."""


class Result(NamedTuple):
    """What a tool said; ok False where the call was refused or wrong."""

    ok: bool
    content: str


class _ReadFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    path: Annotated[str, Meta(min_length=1, max_length=4096, description="File, relative to the project's root.")]
    start_line: Annotated[int, Meta(ge=1, description="First line wanted, from 1.")] = 1
    lines: Annotated[int, Meta(ge=1, le=_LINES, description="How many lines.")] = _LINES


class _ListFiles(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    path: Annotated[str, Meta(max_length=4096, description="Folder, relative to the project's root.")] = "."
    pattern: Annotated[
        str,
        Meta(
            max_length=256, description="Names wanted at any depth, such as '*.py'. Without: the folder's own entries."
        ),
    ] = ""


class ProjectFiles:
    """Reads text files under `root`, whatever links and dots a path is made of. Raises Refused.

    hidden: folders that are nobody's project wherever they lie, as the home of Olympus with its tokens and keys.
    """

    def __init__(self, root: Path, hidden: Sequence[Path] = ()) -> None:
        self._root = root.resolve()
        self._hidden = frozenset(folder.resolve() for folder in hidden)

    def read_file(self, arguments: _ReadFile) -> str:
        """Some lines of a text file, headed by which ones they are."""
        path = self._inside(arguments.path)
        try:
            descriptor = _opened_below(self._root, path.relative_to(self._root).parts)
        except OSError as error:
            raise Refused(f"{arguments.path} cannot be read: {error.strerror}.") from error
        with _opened(descriptor, arguments.path) as file:
            if b"\0" in file.read(_SNIFFED_BYTES):
                raise Refused(f"{arguments.path} is no text file.")
            file.seek(0)
            return _lines_of(iter(lambda: file.readline(READ_BYTES), b""), arguments)

    def list_files(self, arguments: _ListFiles) -> str:
        """Names, one a line; those of folders end with a slash."""
        folder = self._inside(arguments.path or ".")
        if not folder.is_dir():
            raise Refused(f"{arguments.path} is no folder.")
        names: list[str] = []
        entries = _entries(folder, self._hidden, is_deep=bool(arguments.pattern))
        for looked_at, (name, is_folder) in enumerate(entries):
            if looked_at >= _LOOKED_AT or len(names) >= _NAMES:
                names.append(f"[there is more; this is what {looked_at:,} entries gave]")
                break
            if arguments.pattern and (is_folder or not _fits(name, arguments.pattern)):
                continue
            names.append(f"{name}/" if is_folder else name)
        return "\n".join(names) or "Nothing there."

    def _inside(self, given: str) -> Path:
        """The real path of what was asked for. Raises Refused where that is outside, secret, or not there."""
        if "\0" in given:
            raise Refused("a path holds no null bytes.")
        try:
            path = (self._root / given).resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as error:
            if not _is_under(self._root, Path(os.path.normpath(self._root / given))):
                raise Refused(f"{given} is outside of the project.") from error
            raise Refused(f"there is no {given} in the project.") from error
        if not _is_under(self._root, path):
            raise Refused(f"{given} is outside of the project.")
        inner = path.relative_to(self._root)
        if is_secret(inner) or any(_is_under(folder, path) for folder in self._hidden):
            raise Refused(f"{given} may hold passwords or keys and is not shown.")
        return path


class Toolbox:
    """The tools of one conversation. root: of the project, None where there is none; then no file is read.

    hidden: as `ProjectFiles` has it.
    """

    def __init__(self, client: Client, root: Path | None, hidden: Sequence[Path] = ()) -> None:
        self._client = client
        self._files = ProjectFiles(root, hidden) if root is not None and _is_project(root) else None
        self._memory: dict[tuple[str, ...], list[Tool]] = {}

    async def tools(self, names: Sequence[str]) -> list[Tool]:
        """Those of `names` that there are now: without memory its tools are missing, without a project those of files."""
        wanted = tuple(name for name in MEMORY_TOOLS if name in names)
        if wanted and wanted not in self._memory:
            try:
                reply: ToolSchemaList = await self._client.request(
                    "memory.tool.schemas", ToolSchemas(names=list(wanted)), timeout_s=_CALL_S
                )
            except BusError:
                wanted = ()
            else:
                self._memory[wanted] = [msgspec.convert(tool["function"], Tool) for tool in reply.tools]
        own = [_LOCAL[name].tool for name in FILE_TOOLS if name in names] if self._files is not None else []
        return [*self._memory.get(wanted, []), *own]

    async def call(self, call: ToolCall) -> Result:
        """Do what the model asked for; whatever is wrong with it is said in the result."""
        if call.name in MEMORY_TOOLS:
            return await self._call_memory(call)
        local = _LOCAL.get(call.name)
        if local is None or self._files is None:
            return Result(False, f"There is no tool {call.name!r} here.")
        try:
            arguments = msgspec.convert(_decoded(call.arguments), local.arguments, strict=False)
            return Result(True, await asyncio.to_thread(local.run, self._files, arguments))
        except (Refused, OSError, msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            return Result(False, f"{call.name}: {error}")

    async def _call_memory(self, call: ToolCall) -> Result:
        asked = MemoryCall(name=call.name, arguments=call.arguments)
        try:
            reply: ToolResult = await self._client.request("memory.tool.call", asked, timeout_s=_CALL_S)
        except BusError as error:
            return Result(False, f"Memory did not do it: {error.message}.")
        return Result(reply.ok, reply.content)


class _Local(NamedTuple):
    arguments: type[Any]
    run: Callable[[ProjectFiles, Any], str]
    tool: Tool


def _local(name: str, arguments: type[Any], run: Callable[[ProjectFiles, Any], str], description: str) -> _Local:
    _, components = msgspec.json.schema_components([arguments])
    schema = components[arguments.__name__]
    parameters = {
        "type": "object",
        "properties": schema["properties"],
        "required": schema["required"],
        "additionalProperties": False,
    }
    return _Local(arguments, run, Tool(name=name, description=description, parameters=parameters))


_LOCAL: Final = {
    "read_file": _local(
        "read_file", _ReadFile, ProjectFiles.read_file, "Read a text file of the project, some hundred lines at a time."
    ),
    "list_files": _local(
        "list_files", _ListFiles, ProjectFiles.list_files, "List a folder of the project, or find files by name."
    ),
}


def is_secret(path: Path) -> bool:
    """True for a file, by its path in the project, whose name says that it holds passwords or keys."""
    parts = [part.lower() for part in path.parts]
    if any(part in _SECRET_FOLDERS or part.endswith(".git") for part in parts):
        return True
    name = parts[-1] if parts else ""
    for suffix in _COPIES:
        name = name.removesuffix(suffix)
    if name.endswith(_EXAMPLES):
        return False
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _SECRET)


def _opened_below(root: Path, parts: Sequence[str]) -> int:
    """A file for reading, opened folder by folder without a link: one that is put there meanwhile leads nowhere.

    Raises OSError. Not blocking, because opening a pipe would wait for its writer.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    folder = os.open(root, flags | os.O_DIRECTORY)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, folder)
        for part in parts[:-1]:
            folder = os.open(part, flags | os.O_DIRECTORY, dir_fd=folder)
            stack.callback(os.close, folder)
        return os.open(parts[-1] if parts else ".", flags, dir_fd=folder)


def _opened(descriptor: int, name: str) -> BinaryIO:
    """The open file, if it is one that ends. Raises Refused, and has closed it then."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise Refused(f"{name} is a folder; list_files shows what is in it.")
    raise Refused(f"{name} is no regular file.")


def _is_project(root: Path) -> bool:
    """False for a home and what it lies in: whoever starts a chat there has not meant to show all of it."""
    resolved = root.resolve()
    home = Path(os.path.expanduser("~"))
    # A user may have no home.
    whole = (home.resolve(), *home.resolve().parents) if home.is_absolute() else ()
    return resolved != Path(resolved.anchor) and resolved not in whole


def _is_under(root: Path, path: Path) -> bool:
    return path == root or root in path.parents


def _decoded(arguments: str) -> Any:
    return msgspec.json.decode(arguments) if arguments.strip() else {}


def _lines_of(lines: Iterator[bytes], arguments: _ReadFile) -> str:
    """The lines asked for, as far as READ_BYTES go. Raises Refused for what is no UTF-8."""
    taken: list[bytes] = []
    size_bytes, passed_bytes, number, has_more = 0, 0, 0, False
    for number, line in enumerate(lines, 1):
        if number < arguments.start_line:
            passed_bytes += len(line)
            if passed_bytes > _SEARCHED_BYTES:
                raise Refused(f"line {arguments.start_line} is further down than files are read ({number} lines).")
            continue
        if len(taken) >= arguments.lines or (size_bytes + len(line) > READ_BYTES and taken):
            has_more = True
            break
        taken.append(line)
        size_bytes += len(line)
    if not taken:
        if number == 0:
            return "[the file is empty]"
        raise Refused(f"the file has {number} lines, none from {arguments.start_line} on.")
    try:
        text = b"".join(taken).decode()
    except UnicodeDecodeError:
        if len(taken[-1]) < READ_BYTES:
            raise Refused("the file is no UTF-8 text.") from None
        # A line longer than a reading is cut anywhere, perhaps inside a character.
        text = b"".join(taken).decode(errors="replace")
    last = arguments.start_line + len(taken) - 1
    more = f"; read on with start_line={last + 1}" if has_more else ", the last of the file"
    return f"[lines {arguments.start_line} to {last}{more}]\n{text}"


def _entries(folder: Path, hidden: frozenset[Path], *, is_deep: bool) -> Iterator[tuple[str, bool]]:
    """Names under `folder` relative to it, in order, with whether each is a folder; links are not followed."""
    waiting = [""]
    while waiting:
        inner = waiting.pop()
        try:
            with os.scandir(folder / inner) as found:
                # One more than is looked at, so that there being more is seen.
                entries = sorted(itertools.islice(found, _LOOKED_AT + 1), key=lambda entry: entry.name)
        except OSError:
            continue
        below: list[str] = []
        for entry in entries:
            name = f"{inner}{entry.name}"
            if folder / name in hidden:
                continue
            is_folder = entry.is_dir(follow_symlinks=False)
            if is_folder and is_deep and entry.name not in _MADE:
                below.append(f"{name}/")
            if not is_secret(Path(name)):
                yield name, is_folder
        waiting.extend(reversed(below))


def _fits(name: str, pattern: str) -> bool:
    """A pattern with a slash is held against the whole path, one without against the name."""
    return fnmatch.fnmatch(name if "/" in pattern else name.rpartition("/")[2], pattern)
