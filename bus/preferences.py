"""What a person prefers in every chat, OLYMPUS_HOME/chat.yaml: a model, options, tools, a system prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from bus.private_file import write_private
from bus.project_file import Asked, as_tree, parse_file, read
from bus.settings import Settings

_HEADER: Final = """\
# What you prefer in every chat; flags, variables and a project's own file go before it. docs/projects.md tells the keys.
# `olympus models use` and `olympus options` write this file anew, without comments.
"""


def preferences_file(settings: Settings) -> Path:
    """Where the preferences are; nothing need be there."""
    return settings.path("chat.yaml")


def load(settings: Settings) -> Asked:
    """The preferences; those of a person without any say nothing. Raises ProjectError for a file that cannot be used."""
    file = preferences_file(settings)
    return read(file, "preferences") if file.exists() else Asked()


def save(settings: Settings, preferences: Asked) -> None:
    """Keep `preferences`: those of `load`, changed. Raises OSError, and ProjectError for what `load` would refuse."""
    file = preferences_file(settings)
    text = _HEADER + _yaml(preferences)
    parse_file(text, file, "preferences")
    write_private(file, text.encode())


def _yaml(preferences: Asked) -> str:
    import yaml

    tree = as_tree(preferences) | ({"user": preferences.user} if preferences.user else {})
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True) if tree else ""
