"""Context window, output cap and capabilities of a model: from its own file, else from the database of families, else a
guess on the safe side that is marked as one. It asks nobody over a network.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from schemas.bodies.model import Capability, ContextTokens, ModelInfo
from schemas.bodies.model_trials import Limits
from workers.models.routing.rules import matches

SHIPPED_LIMITS: Final = Path(__file__).parents[3] / "config" / "limits.toml"


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    context_tokens: ContextTokens
    max_output_tokens: Annotated[int, Meta(ge=0, le=16_777_216)] | None = None
    capabilities: list[Capability]

    @property
    def output_tokens(self) -> int:
        return self.context_tokens if self.max_output_tokens is None else self.max_output_tokens


class _Family(_Table, frozen=True, kw_only=True):
    models: Annotated[list[str], Meta(min_length=1)]


class _Database(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    default: _Table
    limit: list[_Family]


class LimitsDatabase:
    """The families of `config/limits.toml`, in its order."""

    def __init__(self, path: Path = SHIPPED_LIMITS) -> None:
        """Raises msgspec.ValidationError for a file that says something else than that one."""
        self._database = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _Database)

    def of(self, name: str, entry: ModelInfo | None, *, known_as: str | None = None) -> Limits:
        """The limits of the model called `name`.

        entry: what the catalogue says of it, None for a model that is not here. known_as: what its endpoint calls it.
        """
        found = self._find(known_as) or self._find(name) if known_as else self._find(name)
        if entry is not None and entry.context_tokens > 0:
            return _of_entry(name, entry, found)
        where = "" if entry is not None else f"there is no model {name!r} here; "
        if found is not None:
            pattern, family = found
            note = f"{where}what the family's models have; where it runs it may be given less"
            return _limits(name, family, "database", pattern, note)
        note = f"{where}nothing is known of it: this is a guess on the safe side, and may be far too small"
        return _limits(name, self._database.default, "default", None, note)

    def _find(self, name: str) -> tuple[str, _Family] | None:
        for family in self._database.limit:
            for pattern in family.models:
                if matches(name, [pattern]):
                    return pattern, family
        return None


def _of_entry(name: str, entry: ModelInfo, found: tuple[str, _Family] | None) -> Limits:
    """The window is the file's own; how long an answer may be no file says, so a known family may."""
    output_tokens, note = entry.context_tokens, "an answer may take what the prompt leaves of the window"
    if found is not None and found[1].max_output_tokens is not None:
        output_tokens = min(found[1].max_output_tokens, entry.context_tokens)
        note = f"the output cap is that of {found[0]} in the database"
    return Limits(
        model=name,
        context_tokens=entry.context_tokens,
        max_output_tokens=output_tokens,
        capabilities=list(entry.capabilities),
        source="file",
        pattern=None,
        note=note,
    )


def _limits(name: str, table: _Table, source: str, pattern: str | None, note: str) -> Limits:
    return msgspec.convert(
        {
            "model": name,
            "context_tokens": table.context_tokens,
            "max_output_tokens": table.output_tokens,
            "capabilities": list(table.capabilities),
            "source": source,
            "pattern": pattern,
            "note": note,
        },
        Limits,
    )
