"""Writes a project file for a folder: what was found out about it, what an older file says, and the rest as comments."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bus.project_file import TOOLS, Asked, as_tree, is_within, parse_file
from bus.projects import OURS
from bus.whole_file import write_whole
from bus.yaml_blocks import dump


class ExistsAlready(Exception):
    """There is a project file, and nobody said that it may be written over."""


def file_of(root: Path) -> Path:
    """Where the project file of `root` is."""
    return root / OURS


def init(root: Path, *, name: str, profile: str, because: str, asked: Asked, replace: bool = False) -> Path:
    """Write the project file of `root` and return its path.

    profile: "" for none. because: why that one, for the comment. asked: what an older file says, which is taken over.
    Raises ExistsAlready unless `replace`, and OSError.
    """
    file = file_of(root)
    if os.path.lexists(file) and not replace:
        raise ExistsAlready(f"{file} is there already; --force writes it anew")
    if not is_within(file, root):
        raise OSError(0, f"a link leads out of {root}", str(file))
    text = content(name=name, profile=profile, because=because, asked=asked)
    parse_file(text, file, "project")
    file.parent.mkdir(exist_ok=True)
    write_whole(file, text.encode())
    return file


def content(*, name: str, profile: str, because: str, asked: Asked) -> str:
    """The text of a project file: each key as it is known, or as a comment that shows how it would be written."""
    return "\n".join(_lines(name, profile, because, asked)) + "\n"


def _lines(name: str, profile: str, because: str, asked: Asked) -> Iterator[str]:
    known = as_tree(asked) | ({"templates": asked.folder} if asked.folder else {})

    def key(key: str, example: str = "") -> Iterator[str]:
        yield from _entry({key: known[key]}) if key in known else example.splitlines()

    yield "# What `olympus chat` runs with in this project (docs/projects.md of Olympus tells every key). Commit this file:"
    yield "# whoever works here gets the same. Keep keys and other secrets out of it."
    yield from _entry({"name": name})
    yield ""
    yield (
        f"# {because}" if because else "# documentation, go, python, rust, typescript, a profile of your own, or none."
    )
    yield from _entry({"profile": profile or "none"})
    yield ""
    yield "# A model, or a routing profile such as fast, general or code. Where it is missing, the profile's answers."
    yield from key("model", "# model: code")
    yield "# Or by task: `default` answers, the others are names for --model and templates."
    yield from key("routing", "# routing: {default: code, quick: fast}")
    yield ""
    yield "# Added behind the profile's system prompt; `system` would stand in its place."
    yield from key("system")
    yield from key("system_append", "# system_append: |\n#   Tests are written with pytest. Answer in English.")
    yield ""
    yield f"# Tools of the model: {', '.join(TOOLS)}; [] for none."
    yield from key("tools", "# tools: [recall, search_memory, read_file, list_files]")
    yield ""
    yield "# Sampling options of every answer."
    yield from key("options", "# options: {temperature: 0.2, max_tokens: 1024}")
    yield ""
    yield "# What memory adds: what is known of the person, and what it finds for a question; false for nothing at all."
    yield from key("memory", "# memory: {prompt: true, context: true, prompt_tokens: 256, context_tokens: 512}")
    yield ""
    yield "# Templates of this project lie in .olympus/templates; another folder may be named, below the project."
    yield from key("templates", "# templates: prompts")


def _entry(entry: dict[str, Any]) -> Iterator[str]:
    yield from dump(entry, width=110).splitlines()


def ignored_by(root: Path) -> tuple[Path, int] | None:
    """The line of the root's .gitignore that leaves the folder of project files out, if there is one."""
    file = root / ".gitignore"
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    folder = OURS.parts[0]
    for number, line in enumerate(lines, start=1):
        if line.strip().lstrip("/").rstrip("/") in (folder, f"**/{folder}"):
            return file, number
    return None
