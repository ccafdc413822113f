"""What a chat runs with, and who said so: flags, environment, project, preferences, profile, settings."""

from __future__ import annotations

from typing import Any

import msgspec

from bus.projects import Project

# Tools that a model may be given; the first four are memory's own (memory.tool.schemas), the others read the project.
TOOLS = ("remember", "recall", "search_memory", "forget", "read_file", "list_files")


class Choices(msgspec.Struct, frozen=True, kw_only=True):
    """Effective values of one chat. `origins` says for each field name where its value is from, in words for people.

    model: a model or a routing profile; None lets the service's default answer. options: sampling options of
    `schemas.bodies.model.Sampling` by name. tools: of TOOLS. memory_prompt: put what is known of the person into the system prompt.
    memory_context: search memory for each question. *_tokens: budgets of the two. notes: what was passed over, and why, for people.
    """

    model: str | None = None
    system: str = ""
    options: dict[str, Any] = {}
    tools: tuple[str, ...] = ("remember", "recall", "search_memory")
    memory_prompt: bool = True
    memory_context: bool = True
    prompt_tokens: int = 256
    context_tokens: int = 512
    user: str = "default"
    project: Project | None = None
    origins: dict[str, str] = {}
    notes: tuple[str, ...] = ()
