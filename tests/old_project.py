"""Stores of the replaced system, made for tests of the migration: as its programs wrote them, and broken in many ways."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"

UNIFIED = """
CREATE TABLE memories (memory_id TEXT PRIMARY KEY, content TEXT NOT NULL, memory_type TEXT NOT NULL,
    memory_tier TEXT NOT NULL, importance REAL, access_count INTEGER, last_accessed_at REAL, created_at REAL,
    expires_at REAL, metadata TEXT, tags TEXT, relationships TEXT, parent_id TEXT);
CREATE TABLE memory_relationships (id INTEGER PRIMARY KEY AUTOINCREMENT, source_memory_id TEXT NOT NULL,
    target_memory_id TEXT NOT NULL, relationship_type TEXT NOT NULL, strength REAL DEFAULT 1.0, created_at REAL,
    updated_at REAL);
CREATE TABLE context_groups (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, description TEXT,
    created_at REAL, updated_at REAL);
CREATE TABLE memory_group_mappings (id INTEGER PRIMARY KEY AUTOINCREMENT, memory_id TEXT NOT NULL,
    group_id INTEGER NOT NULL, created_at REAL);
"""
NUMBERED = """
CREATE TABLE memory_entries (memory_id INTEGER PRIMARY KEY AUTOINCREMENT, content TEXT NOT NULL,
    memory_type TEXT DEFAULT 'general', importance_score REAL DEFAULT 0.5, access_count INTEGER DEFAULT 0,
    last_accessed TIMESTAMP, created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, expires_at TIMESTAMP, metadata TEXT);
CREATE TABLE memory_relationships (relationship_id INTEGER PRIMARY KEY AUTOINCREMENT, source_memory_id INTEGER,
    target_memory_id INTEGER, relationship_type TEXT, strength REAL DEFAULT 1.0, created_at TIMESTAMP);
CREATE TABLE memory_categories (category_id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE, description TEXT,
    created_at TIMESTAMP);
CREATE TABLE memory_category_assignments (memory_id INTEGER, category_id INTEGER, relevance_score REAL DEFAULT 1.0);
"""
EPISODIC = """
CREATE TABLE episodes (episode_id INTEGER PRIMARY KEY AUTOINCREMENT, user_id TEXT, profile TEXT, start_time TIMESTAMP,
    end_time TIMESTAMP, context TEXT, summary TEXT, importance_score REAL DEFAULT 0.5, status TEXT DEFAULT 'active');
CREATE TABLE interactions (interaction_id INTEGER PRIMARY KEY AUTOINCREMENT, episode_id INTEGER, timestamp TIMESTAMP,
    speaker TEXT, content TEXT, intent TEXT, sentiment REAL, metadata TEXT);
CREATE TABLE episode_tags (tag_id INTEGER PRIMARY KEY, episode_id INTEGER, tag TEXT, confidence REAL);
CREATE TABLE episode_relationships (relationship_id INTEGER PRIMARY KEY, source_episode_id INTEGER,
    target_episode_id INTEGER, relationship_type TEXT, strength REAL, metadata TEXT);
CREATE TABLE context_groups (group_id INTEGER PRIMARY KEY, name TEXT, description TEXT, created_at TIMESTAMP,
    metadata TEXT);
CREATE TABLE episode_context_groups (episode_id INTEGER, group_id INTEGER, relevance_score REAL);
"""
TRUST = """
CREATE TABLE model_scores (model_id TEXT PRIMARY KEY, trust_score REAL DEFAULT 0.5, total_interactions INTEGER DEFAULT 0,
    successful_interactions INTEGER DEFAULT 0, last_updated TIMESTAMP);
CREATE TABLE performance_logs (id INTEGER PRIMARY KEY AUTOINCREMENT, model_id TEXT, success BOOLEAN, response_time REAL,
    error_message TEXT, timestamp TIMESTAMP);
"""
HUB = """
CREATE TABLE documents (id INTEGER PRIMARY KEY AUTOINCREMENT, namespace TEXT NOT NULL, doc_id TEXT NOT NULL, title TEXT,
    content TEXT NOT NULL, metadata TEXT, embedding_id TEXT, created_at TIMESTAMP, updated_at TIMESTAMP);
CREATE TABLE sessions (id INTEGER PRIMARY KEY AUTOINCREMENT, namespace TEXT NOT NULL, session_id TEXT NOT NULL,
    user_id TEXT, data TEXT NOT NULL, expires_at TIMESTAMP, created_at TIMESTAMP, updated_at TIMESTAMP);
CREATE TABLE experiences (id INTEGER PRIMARY KEY AUTOINCREMENT, namespace TEXT NOT NULL, experience_id TEXT NOT NULL,
    category TEXT, context TEXT NOT NULL, outcome TEXT, learning TEXT, confidence_score REAL DEFAULT 0.0,
    created_at TIMESTAMP);
"""
FUSION = """
CREATE TABLE memory_items (key TEXT PRIMARY KEY, data TEXT NOT NULL, created_at TIMESTAMP, updated_at TIMESTAMP);
CREATE TABLE memory_events (key TEXT, data TEXT, created_at TIMESTAMP);
"""
ERRORS = """
CREATE TABLE errors (id INTEGER PRIMARY KEY AUTOINCREMENT, timestamp REAL, agent TEXT, error_type TEXT, message TEXT,
    severity TEXT, context TEXT);
CREATE TABLE agent_health (id INTEGER PRIMARY KEY AUTOINCREMENT, agent TEXT, status TEXT, last_heartbeat REAL,
    error_count INTEGER);
CREATE TABLE recovery_actions (id INTEGER PRIMARY KEY AUTOINCREMENT, timestamp REAL, agent TEXT, action TEXT,
    success INTEGER, details TEXT);
"""
EVALUATION = """
CREATE TABLE performance_metrics (metric_id TEXT PRIMARY KEY, agent_name TEXT NOT NULL, metric_name TEXT NOT NULL,
    value REAL NOT NULL, timestamp TEXT NOT NULL, context TEXT);
CREATE TABLE model_evaluation_scores (evaluation_id TEXT PRIMARY KEY, model_name TEXT NOT NULL, cycle_id TEXT NOT NULL,
    trust_score REAL NOT NULL, accuracy REAL, f1_score REAL, avg_latency_ms REAL NOT NULL,
    evaluation_timestamp TEXT NOT NULL, comparison_data TEXT);
"""


def module(name: str) -> Any:
    """A script, or a part of one."""
    before = list(sys.path)
    sys.path.insert(0, str(SCRIPTS))
    try:
        return import_module(name)
    finally:
        sys.path[:] = before


def database(path: Path, schema: str, **rows: Sequence[dict[str, Any]]) -> Path:
    """A SQLite file with these rows in these tables; what a row does not name is the column's default."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    connection.executescript(schema)
    for table, wanted in rows.items():
        for row in wanted:
            marks = ", ".join("?" * len(row))
            connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))
    connection.commit()
    connection.close()
    return path


def json_file(path: Path, content: Any) -> Path:
    """A JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def old_memory(memory_id: str, content: Any = "something", **fields: Any) -> dict[str, Any]:
    """A row of `memories`."""
    row = {
        "memory_id": memory_id,
        "content": content,
        "memory_type": "general",
        "memory_tier": "medium",
        "importance": 0.7,
        "access_count": 3,
        "last_accessed_at": 1_700_000_100.0,
        "created_at": 1_700_000_000.0,
        "metadata": "{}",
        "tags": "[]",
        "relationships": "{}",
    }
    return {**row, **fields}


def fingerprint(root: Path) -> dict[str, tuple[str, int]]:
    """The content and the time of every file below a folder, and of every folder."""
    return {
        str(path.relative_to(root)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder",
            path.stat().st_mtime_ns,
        )
        for path in sorted(root.rglob("*"))
    }
