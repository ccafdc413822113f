"""The documents say what is: links, commands, settings, files, the wire's numbers, the dependencies."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import tomllib
import typing
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from broker import core
from bus.cli import app
from bus.settings import environment_name, every_key
from schemas import catalog, envelope, errors, limits

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "broker" / "design.md", *(ROOT / "docs").rglob("*.md")]
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in DOCUMENTS}

SETTINGS = {key.name for key in every_key()}
SECTIONS = {name.partition(".")[0] for name in SETTINGS if "." in name}
PACKAGES = ("broker", "bus", "schemas", "workers")

in_every_document = pytest.mark.parametrize("name", TEXTS)


def prose(text: str) -> str:
    """Without fenced blocks."""
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)


def in_backticks(text: str) -> list[str]:
    """Inline code."""
    return re.findall(r"`([^`\n]+)`", prose(text))


def shell_lines(text: str) -> list[str]:
    """Lines of the fenced blocks marked sh."""
    return "\n".join(re.findall(r"^ *```sh\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)).splitlines()


def anchors(text: str) -> set[str]:
    """Names of the headings as links write them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@in_every_document
def test_every_link_leads_somewhere(name: str) -> None:
    """Files exist, and headings in them."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(TEXTS[name])):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        if not path.exists() or (anchor and anchor not in anchors(path.read_text())):
            broken.append(target)

    assert broken == []


def olympus_calls(text: str) -> list[list[str]]:
    """The arguments of every `olympus ...` in shell blocks and in backticks, one call a list."""
    calls = []
    for line in [line for line in [*shell_lines(text), *in_backticks(text)] if "olympus " in line]:
        words = shlex.split(line.replace("<(", " ").replace(")", " "), comments=True)
        if "olympus" in words:
            after = words[words.index("olympus") + 1 :]
            ends = [index for index, word in enumerate(after) if word in ("|", ">", ";", "&&", "&")]
            calls.append(after[: ends[0]] if ends else after)
    return calls


@in_every_document
def test_every_olympus_command_is_one(name: str) -> None:
    """Each call that a document shows parses; one with a placeholder in capitals has at least a command."""
    for words in olympus_calls(TEXTS[name]):
        if not words or words[0] in ("COMMAND", "..."):
            continue
        root = app.root_parser().parse_args(words)
        command = app.find(root.command)
        assert command is not None, f"olympus {shlex.join(words)}: no such command"
        if command.name != "bench" and not any(re.fullmatch(r"[A-Z]+", word) for word in root.rest):
            app.command_parser(command).parse_args(root.rest)


@in_every_document
def test_every_setting_subject_and_module_is_one(name: str) -> None:
    """`bus.request_port` in backticks is a setting, an operation, an event or a module."""
    unknown = []
    for word in in_backticks(TEXTS[name]):
        if not re.fullmatch(r"[a-z]+(\.[a-z_]+)+", word) or word.partition(".")[0] not in {*SECTIONS, *PACKAGES}:
            continue
        is_subject = catalog.lookup(word) is not None or catalog.event_for(word) is not None
        if word not in SETTINGS and not is_subject and not is_module(word) and not is_file(word):
            unknown.append(word)

    assert unknown == []


def is_module(word: str) -> bool:
    """True for `bus.client` and the like."""
    return word.partition(".")[0] in PACKAGES and importlib.util.find_spec(word) is not None


def is_file(word: str) -> bool:
    """True for `memory.db`, which only looks like a setting."""
    return word.endswith((".py", ".db", ".log", ".yaml"))


@in_every_document
def test_every_environment_variable_is_read(name: str) -> None:
    """OLYMPUS_... in a document names a setting, or the file of settings."""
    known = {environment_name(setting) for setting in SETTINGS} | {"OLYMPUS_CONFIG"}

    assert set(re.findall(r"\bOLYMPUS_[A-Z_]+\b(?!\.)", TEXTS[name])) <= known


@in_every_document
def test_every_file_named_exists(name: str) -> None:
    """`bus/transport.py` in backticks is there; NAME stands for some file."""
    folders = ("bus/", "broker/", "schemas/", "workers/", "docs/", "scripts/", "tests/", "config/")
    named = [word for word in in_backticks(TEXTS[name]) if word.startswith(folders) and re.fullmatch(r"[\w./-]+", word)]
    # Folders of the state below home, not of the project.
    state = {"broker/events", "broker/dead_letters.db"}
    missing = [word for word in named if word not in state and not list(ROOT.glob(word.replace("NAME", "*")))]

    assert missing == []


def test_the_agent_of_the_readme_is_a_tested_example() -> None:
    """The README shows a file of docs/examples as it is."""
    shown = re.findall(r"```python\n(.*?)```", TEXTS["README.md"], re.DOTALL)
    files = {path.read_text() for path in (ROOT / "docs" / "examples").glob("*.py")}

    assert shown
    assert [block for block in shown if block not in files] == []


def test_the_answer_shown_in_the_readme_is_a_documented_one() -> None:
    """The demo model's greeting, as its own test checks it."""
    documented = json.loads((ROOT / "workers" / "models" / "demo" / "documented.json").read_text())
    greeting = next(one["answer"] for one in documented if [m["content"] for m in one["messages"]] == ["Hello"])

    assert f"```\n{greeting}\n```" in TEXTS["README.md"]


# The wire -------------------------------------------------------------------------------------------------------


def test_the_wire_document_has_every_error_code_with_its_status() -> None:
    """One row per class of the tree, and no row without one."""
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| (\d{3}) \|", TEXTS["docs/wire.md"], re.MULTILINE))

    assert rows == {code: str(kind.http_status) for code, kind in errors.BY_CODE.items()}


def test_the_wire_document_has_every_kind_with_its_number() -> None:
    """A client in another language is written from this table."""
    rows = re.findall(r"^\| (\d+) \| ([A-Z]+) \|", TEXTS["docs/wire.md"], re.MULTILINE)

    assert {name: int(number) for number, name in rows} == {kind.name: int(kind) for kind in envelope.Kind}


def test_the_example_of_the_wire_document_is_what_we_send() -> None:
    """The bytes printed there are the bytes of that request."""
    shown = re.search(r"```hex\n(.*?)```", TEXTS["docs/wire.md"], re.DOTALL)
    frames = envelope.encode(envelope.Kind.REQUEST, bytes(range(16)), "bus.ping", body={"payload": "hi"})

    assert shown is not None
    assert [bytes.fromhex(shown[1])] == [bytes(frame) for frame in frames]
    assert f"{len(frames[0])} bytes" in TEXTS["docs/wire.md"]


def test_the_wire_document_has_the_limits_of_the_code() -> None:
    """Numbers written out are the constants."""
    text = TEXTS["docs/wire.md"]

    assert f"{limits.MAX_BODY_BYTES // 2**20} MiB" in text
    assert f"{limits.INLINE_BODY_BYTES:,} bytes" in text
    assert f"{limits.MAX_SUBJECT_BYTES} bytes" in text
    assert f"{limits.MAX_HEADER_BYTES // 1024} KiB" in text
    assert f"| frames of a message | {limits.MAX_FRAMES} |" in text


def test_the_design_of_the_broker_has_every_event_and_effect() -> None:
    """The two tables of broker/design.md are the core's two unions."""
    rows = [row.strip("|").split("|")[0] for row in TEXTS["broker/design.md"].splitlines() if row.startswith("| `")]
    named = {word for row in rows for word in re.findall(r"`([A-Z]\w+)`", row)}
    declared = {kind.__name__ for union in (core.Event, core.Effect) for kind in typing.get_args(union)}

    assert named == declared


# Decisions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "adr").glob("*.md")), ids=lambda path: path.stem)
def test_every_decision_has_its_four_parts(path: Path) -> None:
    """Context, decision, consequences, and what would change our mind; the number is in the title; one page."""
    text = path.read_text()

    assert text.startswith(f"# {path.name[:4]}: ")
    parts = ("**Context.**", "**Decision.**", "**Consequences.**", "**What would change our mind.**")
    assert [text.count(part) for part in parts] == [1, 1, 1, 1]
    assert len(text.splitlines()) <= 80


def test_every_decision_that_code_refers_to_exists() -> None:
    """`docs/adr/0002` in a comment leads to a file."""
    numbers = {
        number
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for number in re.findall(r"docs/adr/(\d{4})", path.read_text())
    }

    assert [number for number in sorted(numbers) if not list((ROOT / "docs" / "adr").glob(f"{number}-*.md"))] == []


def test_the_decision_on_libraries_names_every_direct_dependency() -> None:
    """A library of pyproject.toml has its reason in ADR 0008."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    reasons = TEXTS["docs/adr/0008-libraries.md"]

    assert [text for text in asked if f"`{Requirement(text).name}`" not in reasons] == []
