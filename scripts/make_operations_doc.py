"""Writes docs/operations.md from the catalogue; with --check only says whether it is up to date."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bus.cli.describe import fields_of, marks, parts_of, summary_of  # noqa: E402
from schemas import catalog  # noqa: E402
from schemas.catalog import Operation  # noqa: E402

DOCUMENT = ROOT / "docs" / "operations.md"

INTRODUCTION = """\
# Operations and events

Generated from the catalogue in `schemas/catalog.py` by `scripts/make_operations_doc.py`; change it there.

Send one with `olympus req SUBJECT BODY`, look one up with `olympus req SUBJECT --describe`. Marks: **I** idempotent,
so that a repeated request is harmless and a lost worker's request is given to another; **S** streams partial replies
before the final one. Every operation may also answer an error, `{code, message, details}`.
Fields ending in `_s` are seconds, in `_at` Unix epoch seconds, in `_bytes` bytes.

The routes are those of the HTTP edge ([rest.md](rest.md)). Scopes are checked where `auth.required` is on
([auth.md](auth.md))."""


def main() -> int:
    """Write the document, or compare it; 1 when it differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; end with 1 when the document is out of date"
    )
    is_check = parser.parse_args().check
    text = document()
    if not is_check:
        DOCUMENT.write_text(text, encoding="utf-8")
        return 0
    if DOCUMENT.is_file() and DOCUMENT.read_text(encoding="utf-8") == text:
        return 0
    print(f"{DOCUMENT.relative_to(ROOT)} is out of date: run scripts/make_operations_doc.py", file=sys.stderr)
    return 1


def document() -> str:
    """The whole document."""
    families: dict[str, list[Operation]] = {}
    for operation in catalog.OPERATIONS.values():
        families.setdefault(operation.family, []).append(operation)
    lines = [INTRODUCTION]
    for family, operations in families.items():
        lines += ["", f"## {family}", "", *_overview(operations)]
        for operation in operations:
            lines += ["", *_operation(operation)]
    lines += ["", "## Events", "", *_events()]
    return "\n".join(lines) + "\n"


def _overview(operations: list[Operation]) -> Iterator[str]:
    yield "| subject | marks | REST | what it does |"
    yield "|---|---|---|---|"
    for each in operations:
        yield f"| `{each.subject}` | {marks(each)} | {each.http} | {each.summary} |"


def _operation(operation: Operation) -> Iterator[str]:
    yield f"### `{operation.subject}`"
    yield ""
    yield operation.summary + (f" Scope: `{operation.scope}`." if operation.scope else "")
    if (note := summary_of(operation.request)) is not None:
        yield note
    if fields_of(operation.request):
        yield ""
        yield from _request_table(operation.request)
        for part in parts_of(operation.request):
            yield ""
            yield f"`{part.__name__}`:"
            yield ""
            yield from _request_table(part)
    else:
        yield "Takes no fields."
    yield ""
    if operation.partial is not None:
        yield f"Streams {_reply(operation.partial)}"
    yield f"Answers {_reply(operation.reply)}"


def _request_table(body_type: type[Any]) -> Iterator[str]:
    yield "| field | type | default | limits |"
    yield "|---|---|---|---|"
    for field in fields_of(body_type):
        default = "required" if field.is_required else f"`{field.default}`"
        yield f"| `{field.name}` | {_cell(field.type)} | {default} | {_cell(field.limits)} |"


def _reply(body_type: type[Any]) -> str:
    parts = [f"{{{_names(body_type)}}}."]
    parts += [f"`{part.__name__}`: {{{_names(part)}}}." for part in parts_of(body_type)]
    if (note := summary_of(body_type)) is not None:
        parts.append(note)
    return " ".join(parts)


def _names(body_type: type[Any]) -> str:
    return ", ".join(f"{field.name}: {field.type.replace('|', 'or')}" for field in fields_of(body_type))


def _events() -> Iterator[str]:
    yield "Watch them with `olympus tap 'PATTERN'`."
    yield ""
    yield "| subject | when | body |"
    yield "|---|---|---|"
    for event in catalog.EVENTS:
        yield f"| `{event.pattern}` | {event.summary} | {_cell(_names(event.body))} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
