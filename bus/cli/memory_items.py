"""`olympus memory add`, `list`, `show` and `forget`: single memories, documents and facts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from bus.cli import exits
from bus.cli.action import Action
from bus.cli.confirming import confirm
from bus.cli.connection import run_with_client
from bus.cli.durations import duration, instant
from bus.cli.failures import UsageError, say
from bus.cli.hosting import hosted
from bus.cli.output import (
    day_and_time,
    fit,
    number,
    one_line,
    plural,
    print_json,
    printable,
    table,
    terminal_width,
    write_line,
)
from bus.client import Client
from schemas.bodies.items import (
    DocDelete,
    DocDeleted,
    DocGet,
    DocInfo,
    DocPut,
    ExperienceGet,
    Memories,
    Memory,
    MemoryAdd,
    MemoryAdded,
    MemoryChildren,
    MemoryDelete,
    MemoryDeleted,
    MemoryGet,
    MemoryList,
    MemoryRelated,
    RelatedMemories,
)
from schemas.bodies.memory import AllFacts, Fact, FactPage, Forget, Forgotten, KvGet, Recall, Remember
from schemas.bodies.sessions import ContextGet, SessionGet, SessionHistory
from schemas.errors import Conflict, Forbidden, NotFound

# Children and relations that `show` lists; the rest is counted.
_SHOWN_MAX: Final = 10

# Characters of a text in a row; the window cuts it further.
_EXCERPT: Final = 500


# add --------------------------------------------------------------------------------------------------------------


def _configure_add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "text", metavar="TEXT", nargs="+", help="what to keep; '-' alone reads it from stdin, @FILE from a file"
    )
    parser.add_argument("--ns", help="namespace (memory; kb for a document, user for a fact)")
    parser.add_argument("--type", help="what sort of memory it is, any word")
    parser.add_argument("--tier", choices=("short", "medium", "long"), help="how long it is meant to last")
    parser.add_argument("--importance", type=float, metavar="0..1", help="how much it matters")
    parser.add_argument("--tag", action="append", default=[], metavar="TAG", help="repeatable")
    parser.add_argument("--speaker", metavar="NAME", help="who said it")
    parser.add_argument("--parent", metavar="ID", help="the memory it belongs under")
    parser.add_argument("--ttl", type=duration, metavar="TIME", help="forget it after this long (90s, 2h, 30d)")
    parser.add_argument(
        "--at", type=instant, metavar="TIME", help="when it was said or happened (2h ago as 2h, or ISO)"
    )
    parser.add_argument("--meta", action="append", default=[], metavar="KEY=VALUE", help="metadata; repeatable")
    parser.add_argument("--id", metavar="ID", help="a name of your own for it")
    parser.add_argument("--replace", action="store_true", help="overwrite what has that id")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--document", action="store_true", help="keep it as a document, found piece by piece")
    shape.add_argument("--fact", metavar="KEY", help="keep it as the fact KEY")
    parser.add_argument("--title", help="of a document")
    parser.add_argument("--category", help="of a fact: fact, preference, context or any word (fact)")
    parser.add_argument("--json", action="store_true", help="print the whole reply")


def _run_add(args: argparse.Namespace) -> int:
    text, file = _read_text(" ".join(args.text))
    if args.fact is not None:
        return _send(args, "memory.remember", _fact(args, text), "key")
    if args.document:
        return _send(args, "memory.doc.put", _document(args, text, file), "doc_id")
    _refuse(args, "a memory", "title", "category")
    optional = _given(args, "ns", "type", "tier", "importance", "speaker", "at", "id")
    memory = MemoryAdd(
        **optional,
        content=text,
        tags=args.tag,
        parent_id=args.parent,
        ttl_s=args.ttl,
        metadata=_metadata(args.meta),
        replace=args.replace,
    )
    return _send(args, "memory.add", memory, "id")


def _fact(args: argparse.Namespace, text: str) -> Remember:
    _refuse(
        args, "a fact", "type", "tier", "importance", "tag", "speaker", "parent", "ttl", "at", "meta", "id", "title"
    )
    return Remember(**_given(args, "ns", "category"), key=args.fact, value=text)


def _document(args: argparse.Namespace, text: str, file: Path | None) -> DocPut:
    _refuse(args, "a document", "type", "tier", "importance", "speaker", "parent", "ttl", "category")
    doc_id = args.id or (file.name if file is not None else None)
    if doc_id is None:
        raise UsageError("a document that comes from no file needs an --id")
    return DocPut(
        **_given(args, "ns", "at"),
        doc_id=doc_id,
        content=text,
        title=args.title or (file.name if file is not None else ""),
        tags=args.tag,
        metadata=_metadata(args.meta),
        if_version=None if args.replace else 0,
    )


def _send(args: argparse.Namespace, subject: str, body: msgspec.Struct, id_field: str) -> int:
    async def ask(client: Client) -> int:
        try:
            reply: MemoryAdded | DocInfo | Fact = await client.request(subject, body)
        except Conflict:
            if not args.replace:
                say("that id is taken: --replace overwrites what is there")
            raise
        if args.json:
            print_json(reply, indent=2)
        else:
            write_line(getattr(reply, id_field))
        return exits.OK

    return run_with_client(args, ask)


def _read_text(word: str) -> tuple[str, Path | None]:
    if word == "-":
        if hosted() is not None:
            raise UsageError("'-' reads stdin, which is the keyboard of this chat: give the text itself, or @FILE")
        return _decoded(sys.stdin.buffer.read(), "stdin"), None
    if not word.startswith("@"):
        return word, None
    path = Path(word[1:])
    try:
        return _decoded(path.read_bytes(), str(path)), path
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} is not UTF-8 text: byte {error.start} is {data[error.start]:#04x}") from error


def _metadata(pairs: Sequence[str]) -> dict[str, Any]:
    metadata = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--meta {pair!r} is not KEY=VALUE")
        try:
            metadata[key] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            metadata[key] = value
    return metadata


def _given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that were given: the others keep the operation's own defaults."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _refuse(args: argparse.Namespace, what: str, *names: str) -> None:
    for name in names:
        if getattr(args, name) not in (None, []):
            raise UsageError(f"{what} has no --{name}")


# list -------------------------------------------------------------------------------------------------------------


def _configure_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fact", action="store_true", help="list facts instead of memories")
    parser.add_argument("--ns", help="namespace (memory; user for facts)")
    parser.add_argument("--type", help="only of this type")
    parser.add_argument("--tier", choices=("short", "medium", "long"), help="only of this tier")
    parser.add_argument("--tag", help="only with this tag")
    parser.add_argument("--parent", metavar="ID", help="only those under this memory")
    parser.add_argument("--contains", metavar="TEXT", help="only with this text in the content, in any case")
    parser.add_argument("--sort", choices=("added", "newest", "importance"), help="in which order (added)")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="how many (50)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def _run_list(args: argparse.Namespace) -> int:
    if args.fact:
        return _list_facts(args)
    request = MemoryList(
        **_given(args, "ns", "type", "tier", "tag", "contains", "sort"), parent_id=args.parent, limit=args.limit
    )

    async def ask(client: Client) -> int:
        page: Memories = await client.request("memory.list", request)
        if args.json:
            for memory in page.memories:
                print_json(memory)
            return exits.OK
        if not page.memories:
            say(
                f"no memories in namespace {printable(request.ns)} that this asks for: olympus memory add TEXT keeps one"
            )
            return exits.OK
        rows = [
            (
                printable(one.id),
                day_and_time(one.at),
                one.tier,
                f"{one.importance:.2f}",
                one_line(one.content, _EXCERPT),
            )
            for one in page.memories
        ]
        width = terminal_width()
        for line in table(("ID", "AT", "TIER", "IMPORTANCE", "CONTENT"), rows):
            write_line(fit(line, width))
        if page.next_after is not None:
            say(f"there are more; --limit N shows up to 1000, or: olympus req memory.list after={page.next_after}")
        return exits.OK

    return run_with_client(args, ask)


def _list_facts(args: argparse.Namespace) -> int:
    _refuse(args, "a fact", "type", "tier", "tag", "parent", "contains", "sort")
    request = AllFacts(**_given(args, "ns"), limit=args.limit)

    async def ask(client: Client) -> int:
        page: FactPage = await client.request("memory.all", request)
        if args.json:
            for fact in page.facts:
                print_json(fact)
            return exits.OK
        if not page.facts:
            say("nothing is known yet: olympus memory add TEXT --fact KEY keeps a fact")
            return exits.OK
        rows = [
            (printable(one.key), day_and_time(one.updated_at), printable(one.category), one_line(one.value, _EXCERPT))
            for one in page.facts
        ]
        width = terminal_width()
        for line in table(("KEY", "AT", "CATEGORY", "VALUE"), rows):
            write_line(fit(line, width))
        if page.next_after is not None:
            say("there are more; --limit N shows up to 1000")
        return exits.OK

    return run_with_client(args, ask)


# show -------------------------------------------------------------------------------------------------------------


class _Shown(NamedTuple):
    subject: str
    ns: str
    id_field: str
    request: type[Any]


_KINDS: Final = {
    "memory": _Shown("memory.get", "memory", "id", MemoryGet),
    "document": _Shown("memory.doc.get", "kb", "doc_id", DocGet),
    "session": _Shown("memory.session.get", "session", "session_id", SessionGet),
    "context": _Shown("memory.context.get", "context", "context_id", ContextGet),
    "experience": _Shown("memory.experience.get", "experience", "exp_id", ExperienceGet),
    "fact": _Shown("memory.recall", "user", "key", Recall),
    "kv": _Shown("memory.kv.get", "kv", "key", KvGet),
}


def _configure_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="its id, or the key of a fact or entry")
    parser.add_argument("--kind", choices=tuple(_KINDS), default="memory", help="what it is (memory)")
    parser.add_argument("--ns", help="namespace (the usual one of its kind)")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def _run_show(args: argparse.Namespace) -> int:
    shown = _KINDS[args.kind]
    ns = args.ns or shown.ns
    request = shown.request(
        **{shown.id_field: args.id, "ns": ns, **({"touch": False} if args.kind == "memory" else {})}
    )

    async def ask(client: Client) -> int:
        try:
            found = await client.request(shown.subject, request)
        except NotFound:
            say(f"there is no {args.kind} of that name; --kind shows other kinds: {', '.join(_KINDS)}")
            raise
        beside: dict[str, Any] = {}
        if args.kind == "memory":
            beside = await _around(client, ns, args.id)
        elif args.kind == "session":
            history = SessionHistory(session_id=args.id, ns=ns, touch=False)
            beside = {"history": (await client.request("memory.session.history", history)).turns}
        if args.json:
            print_json({**msgspec.structs.asdict(found), **beside}, indent=2)
        else:
            write_line("\n".join(_described(found, beside)))
        return exits.OK

    return run_with_client(args, ask)


async def _around(client: Client, ns: str, memory_id: str) -> dict[str, Any]:
    children: Memories = await client.request("memory.children", MemoryChildren(id=memory_id, ns=ns))
    related: RelatedMemories = await client.request(
        "memory.related", MemoryRelated(id=memory_id, ns=ns, direction="both")
    )
    return {"children": children.memories, "related": related.related}


def _described(found: msgspec.Struct, beside: dict[str, Any]) -> list[str]:
    """Fields by line, the long text last, then what stands around it."""
    fields = msgspec.structs.asdict(found)
    text = next((fields.pop(name) for name in ("content", "system_prompt") if fields.get(name)), None)
    rows = [(name, _field(name, value)) for name, value in fields.items() if value not in (None, [], {}, "")]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    if isinstance(text, str):
        lines += ["", printable(text)]
    children: list[Memory] = beside.get("children", [])
    if children:
        lines += ["", f"{number(len(children))} under it:"]
        lines += [f"  {printable(child.id)}  {one_line(child.content, _EXCERPT)}" for child in children[:_SHOWN_MAX]]
    related = beside.get("related", [])
    if related:
        lines += ["", f"{number(len(related))} related:"]
        lines += [
            printable(f"  {one.relation.source_id} -{one.relation.kind}-> {one.relation.target_id}")
            + f"  ({one.relation.strength:g})"
            for one in related[:_SHOWN_MAX]
        ]
    for turn in beside.get("history", []):
        who = printable(turn.speaker or turn.role)
        lines += ["", f"{turn.number}  {day_and_time(turn.at)}  {who}:", printable(turn.content)]
    return lines


def _field(name: str, value: Any) -> str:
    if isinstance(value, float) and (name == "at" or name.endswith("_at")):
        return day_and_time(value)
    if isinstance(value, str):
        return printable(value)
    return msgspec.json.encode(value, enc_hook=str).decode() if isinstance(value, dict | list) else str(value)


# forget -----------------------------------------------------------------------------------------------------------


def _configure_forget(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="+", metavar="ID", help="memories, documents, or keys of facts")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--document", action="store_true", help="forget documents instead of memories")
    shape.add_argument("--fact", action="store_true", help="forget facts instead of memories")
    parser.add_argument("--ns", help="namespace (memory; kb for documents, user for facts)")
    parser.add_argument("--cascade", action="store_true", help="also everything under the memory")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def _run_forget(args: argparse.Namespace) -> int:
    noun = "fact" if args.fact else "document" if args.document else "memory"
    if args.cascade and noun != "memory":
        raise UsageError(f"nothing lies under a {noun}: --cascade is for memories")
    if (len(args.ids) > 1 or args.cascade) and not args.yes:
        what = plural(len(args.ids), noun).replace("memorys", "memories")
        confirm(f"Forget {what}: {', '.join(args.ids)}{', and everything under that' if args.cascade else ''}")

    async def ask(client: Client) -> int:
        missing = 0
        for name in args.ids:
            try:
                reply = await _forget(client, args, name)
            except NotFound as error:
                say(error.message + (await _elsewhere(client, name) if noun == "memory" else ""))
                missing += 1
                continue
            if args.json:
                print_json(reply)
            else:
                write_line(f"{name}  forgotten{_how_many(reply)}")
        return exits.FAILED if missing else exits.OK

    return run_with_client(args, ask)


async def _elsewhere(client: Client, name: str) -> str:
    """Where else something of that name is, which was asked for as a memory."""
    for subject, body, what in (
        ("memory.recall", Recall(key=name), "fact"),
        ("memory.doc.get", DocGet(doc_id=name), "document"),
    ):
        with suppress(NotFound, Forbidden):
            await client.request(subject, body)
            return f"; it is a {what}: --{what} forgets it"
    return ""


async def _forget(client: Client, args: argparse.Namespace, name: str) -> _Gone:
    """Raises NotFound where there is nothing to forget."""
    if args.fact:
        forgotten: Forgotten = await client.request("memory.forget", Forget(**_given(args, "ns"), key=name))
        if not forgotten.forgotten:
            raise NotFound(f"nothing is known as {name!r}")
        return forgotten
    if args.document:
        gone: DocDeleted = await client.request("memory.doc.delete", DocDelete(**_given(args, "ns"), doc_id=name))
        if not gone.deleted:
            raise NotFound(f"no document {name!r} in namespace {gone.ns!r}")
        return gone
    deleted: MemoryDeleted = await client.request(
        "memory.delete", MemoryDelete(**_given(args, "ns"), id=name, cascade=args.cascade)
    )
    return deleted


_Gone = MemoryDeleted | DocDeleted | Forgotten


def _how_many(reply: _Gone) -> str:
    below = reply.deleted - 1 if isinstance(reply, MemoryDeleted) else 0
    return f", and {plural(below, 'memory').replace('memorys', 'memories')} under it" if below else ""


ACTIONS: Final = (
    Action(
        "add",
        "keep a memory, a document or a fact",
        _configure_add,
        _run_add,
        """
olympus memory add 'Ada keeps bees' --tag bees --importance 0.8
olympus memory add 'the meeting moved to noon' --speaker Bob --at 2h --ttl 7d
olympus memory add @notes.md --document --title Notes
olympus memory add Porto --fact city
olympus memory add blue --fact 'favourite colour' --category preference
fortune | olympus memory add - --type quote --meta source=fortune
""",
    ),
    Action(
        "list",
        "list memories in the order they were added, or facts",
        _configure_list,
        _run_list,
        """
olympus memory list --tag bees
olympus memory list --fact
olympus memory list --tier long --limit 1000 --json
""",
    ),
    Action(
        "show",
        "show one memory with what lies under it and what it is related to",
        _configure_show,
        _run_show,
        """
olympus memory show mem-0190b8e2-5f7e-7c3a-9d57-5a8f0c1b2d3e
olympus memory show notes.md --kind document
olympus memory show city --kind fact
""",
    ),
    Action(
        "forget",
        "forget memories, documents or facts for good",
        _configure_forget,
        _run_forget,
        """
olympus memory forget mem-0190b8e2-5f7e-7c3a-9d57-5a8f0c1b2d3e
olympus memory forget trip-to-porto --cascade
olympus memory forget --fact city
olympus memory forget --document notes.md
""",
    ),
)
