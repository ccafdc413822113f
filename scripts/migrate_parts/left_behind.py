"""What the migration of learning does not move: adapters, which a person brings in, and rows that nobody reads."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from migrate_parts.stores import UnusableStore, find, opened, read_json

# Where the few-shot routine wrote, below the folders that the old programs were started in.
_ADAPTERS: Final = ("fine_tuned_models", "data/fine_tuned_models", "main_pc_code/fine_tuned_models")

_WEIGHTS: Final = ("adapter_model.safetensors", "adapter_model.bin")

# Tables whose rows stand behind those that are moved, and why they are not.
_UNREAD: Final = (
    ("data/self_training.db", "resource_usage", "nothing of the old system holds a resource any more"),
    ("data/self_training.db", "cycle_metrics", "a cycle keeps the newest value of each metric"),
    ("data/local_fine_tuner.db", "tuning_metrics", "a job keeps the newest value of each metric"),
    ("data/learning_adjuster.db", "parameter_history", "a parameter keeps its current value"),
)


def notes(root: Path) -> Iterator[str]:
    """A line for each thing that is left behind, and what to do about it."""
    if not root.is_dir():
        return
    yield from _adapters(root)
    for relative, table, why in _UNREAD:
        for found in find(root, relative):
            count = _count(found.path, table)
            if count:
                yield f"left behind: {found.name}:{table}, {count:,} rows: {why}"
    placeholders = sum(1 for _ in (root / "artifacts").glob("*/*.json"))
    if placeholders:
        yield f"left behind: artifacts/, {placeholders:,} files: they hold no weights; jobs keep their paths"


def _count(path: Path, table: str) -> int:
    """0 for a store that cannot be read: its own rows tell why."""
    try:
        with opened(path) as database:
            return database.count(table)
    except UnusableStore:
        return 0


def _adapters(root: Path) -> Iterator[str]:
    seen: set[Path] = set()
    for folder in _ADAPTERS:
        for config in sorted((root / folder).rglob("adapter_config.json")):
            seen.add(config.parent)
            yield _adapter(root, config)
        for path in sorted((root / folder).glob("*")):
            if path.is_dir() and not any(path == one or path in one.parents for one in seen):
                yield f"left behind: {path.relative_to(root)}: it holds no adapter (adapter_config.json)"


def _adapter(root: Path, config: Path) -> str:
    folder = config.parent
    name = folder.relative_to(root)
    try:
        base = read_json(config).get("base_model_name_or_path") or "MODEL"
    except (UnusableStore, AttributeError) as error:
        return f"left behind: {name}: adapter_config.json cannot be read: {error}"
    weights = next((one for one in _WEIGHTS if (folder / one).is_file()), None)
    if weights is None:
        return f"left behind: {name}: it holds no weights (adapter_model.safetensors)"
    if not weights.endswith(".safetensors"):
        return f"left behind: {name}: its weights are a pickle, which is not opened; convert them to safetensors"
    body: dict[str, Any] = {"model": Path(str(base)).name, "adapter": folder.name, "path": str(folder.resolve())}
    asked = f"olympus req model.adapter.attach {shlex.quote(json.dumps(body))}"
    return f"to bring in: {name}, an adapter of {base}: {asked}, with the model's name in the catalogue"
