"""`episodic_memory.db` of the EpisodicMemoryAgent (7106): an episode becomes a memory, what was said in it lies under it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from migrate_parts.figures import number, text, unit
from migrate_parts.moving import Becomes, Row, Store, row
from migrate_parts.stores import Database, Found, find, opened, packed_or_text
from migrate_parts.times import default_epoch
from migrate_parts.unified import group, memory, relation
from schemas.bodies.upkeep import NewRecord

# Numbers of groups are given out over all stores: these begin where those of the orchestrator's never came.
_GROUPS_FROM: Final = 100_000

_EPISODE: Final = (
    "episode_id",
    "user_id",
    "profile",
    "start_time",
    "end_time",
    "context",
    "summary",
    "importance_score",
    "status",
)
_INTERACTION: Final = (
    "interaction_id",
    "episode_id",
    "timestamp",
    "speaker",
    "content",
    "intent",
    "sentiment",
    "metadata",
)
_TABLES: Final = ("episodes", "interactions", "episode_relationships", "context_groups")


def stores(root: Path) -> list[Store]:
    """The store, where the project has one."""
    return [_store(found) for found in find(root, "episodic_memory.db", "data/episodic_memory.db")]


def _store(found: Found) -> Store:
    def total() -> int:
        with opened(found.path) as database:
            return sum(database.count(table) for table in _TABLES)

    def rows() -> Iterator[Row]:
        with opened(found.path) as database:
            known = {one["episode_id"] for one in database.rows("episodes", "episode_id")}
            tags, groups = _tags(database), _groups_of(database)
            for one in database.rows("episodes", *_EPISODE):
                episode_id = one["episode_id"]
                more = {"legacy_groups": groups[episode_id]} if groups[episode_id] else {}
                make = partial(_episode, one, tags[episode_id], more, database.written_at)
                yield row("episodes", episode_id, make)
            for one in database.rows("interactions", *_INTERACTION):
                yield row("interactions", one["interaction_id"], partial(_interaction, one, known, database.written_at))
            yield from _relations(database, known)
            yield from _groups(database, known)

    return Store(found.name, found.path, total, rows)


def _id(episode_id: Any) -> str:
    return f"episode-legacy-{episode_id}"


def _tags(database: Database) -> defaultdict[Any, list[str]]:
    found: defaultdict[Any, list[str]] = defaultdict(list)
    for one in database.rows("episode_tags", "episode_id", "tag"):
        found[one["episode_id"]].append(text(one["tag"]))
    return found


def _groups_of(database: Database) -> defaultdict[Any, dict[str, float]]:
    """The groups of each episode by number, with how far it belongs to them."""
    found: defaultdict[Any, dict[str, float]] = defaultdict(dict)
    for one in database.rows("episode_context_groups", "episode_id", "group_id", "relevance_score"):
        found[one["episode_id"]][str(one["group_id"])] = unit(one["relevance_score"], 1.0)
    return found


def _episode(one: dict[str, Any], tags: list[str], more: dict[str, Any], written_at: float) -> NewRecord:
    summary, context = text(one["summary"]), text(one["context"])
    about = {name: one[name] for name in ("user_id", "profile", "start_time", "end_time", "status", "context")}
    return memory(
        id=_id(one["episode_id"]),
        content=summary or context or f"Episode {one['episode_id']}",
        type="episode",
        tier="medium",
        importance=unit(one["importance_score"], 0.5),
        created_at=default_epoch(one["start_time"]) or written_at,
        tags=tags,
        metadata={**{name: value for name, value in about.items() if value not in (None, "")}, **more},
    )


def _interaction(one: dict[str, Any], known: set[Any], written_at: float) -> NewRecord:
    metadata: dict[str, Any] = packed_or_text(one["metadata"], "metadata")
    speaker = text(one["speaker"])
    parent_id = _id(one["episode_id"]) if one["episode_id"] in known else None
    if parent_id is None and one["episode_id"] is not None:
        metadata = {**metadata, "legacy.parent_id": _id(one["episode_id"])}
    # As the SessionMemoryAgent keeps what was said, so that its clients read a whole episode.
    about = {"role": speaker, "intent": text(one["intent"]), "timestamp": one["timestamp"]}
    if one["sentiment"] is not None:
        about["sentiment"] = number(one["sentiment"], 0.0)
    return memory(
        id=f"interaction-legacy-{one['interaction_id']}",
        content=one["content"],
        type="interaction",
        tier="short",
        created_at=default_epoch(one["timestamp"]) or written_at,
        parent_id=parent_id,
        speaker=speaker[:256] or None,
        tags=[speaker.lower()],
        metadata={**metadata, **{name: value for name, value in about.items() if value not in (None, "")}},
    )


def _relations(database: Database, known: set[Any]) -> Iterator[Row]:
    wanted = ("relationship_id", "source_episode_id", "target_episode_id", "relationship_type", "strength")
    for one in database.rows("episode_relationships", *wanted):

        def becomes(one: dict[str, Any] = one) -> Becomes:
            ends = (one["source_episode_id"], one["target_episode_id"])
            for end in ends:
                if end not in known:
                    return f"the episode {end!r} does not exist"
            return relation(_id(ends[0]), _id(ends[1]), one["relationship_type"], one["strength"], database.written_at)

        yield row("episode_relationships", one["relationship_id"], becomes)


def _groups(database: Database, known: set[Any]) -> Iterator[Row]:
    members: defaultdict[Any, list[str]] = defaultdict(list)
    for one in database.rows("episode_context_groups", "episode_id", "group_id"):
        if one["episode_id"] in known:
            members[one["group_id"]].append(_id(one["episode_id"]))
        else:
            key = f"{one['episode_id']}/{one['group_id']}"
            yield Row("episode_context_groups", key, f"the episode {one['episode_id']!r} does not exist")
    for one in database.rows("context_groups", "group_id", "name", "description", "created_at"):

        def becomes(one: dict[str, Any] = one) -> Becomes:
            at = default_epoch(one["created_at"]) or database.written_at
            return group(_GROUPS_FROM + one["group_id"], one["name"], one["description"], at, members[one["group_id"]])

        yield row("context_groups", one["group_id"], becomes)
