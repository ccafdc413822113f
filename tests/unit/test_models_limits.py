"""Limits of models: the file's own word, then the database, then a guess that says it is one."""

from __future__ import annotations

import re

import pytest

from schemas.bodies.model import ModelInfo
from workers.models.routing.limits import SHIPPED_LIMITS, LimitsDatabase


@pytest.fixture(scope="module")
def database() -> LimitsDatabase:
    """The shipped one."""
    return LimitsDatabase()


def entry(name: str, context_tokens: int) -> ModelInfo:
    """What the catalogue says of a model."""
    return ModelInfo(
        name=name,
        family="llama",
        format="gguf",
        quantisation="Q4_K",
        parameters=1,
        size_bytes=1,
        context_tokens=context_tokens,
        state="available",
        capabilities=["generate"],
    )


def test_file_goes_before_the_database(database: LimitsDatabase) -> None:
    """A model's own metadata are about this very file; how long an answer may be no file says."""
    limits = database.of("gemma-3-4b-it", entry("gemma-3-4b-it", 4096))

    assert (limits.source, limits.context_tokens, limits.max_output_tokens) == ("file", 4096, 4096)
    assert limits.capabilities == ["generate"]
    assert database.of("gemma-3-4b-it", entry("gemma-3-4b-it", 32_768)).max_output_tokens == 8192


@pytest.mark.parametrize(
    ("name", "context_tokens", "max_output_tokens"),
    [
        ("gpt-4o-mini", 128_000, 16_384),
        ("gpt-4", 8_192, 8_192),
        ("meta-llama/Llama-3.1-8B-Instruct", 131_072, 131_072),
        ("llama3:8b", 8_192, 8_192),
        ("Qwen2.5-7B-Instruct-Q4_K_M", 32_768, 8_192),
        ("Phi-3-mini-4k-instruct", 4_096, 4_096),
        ("phi-3-mini-128k-instruct", 131_072, 131_072),
        ("mistral:7b", 32_768, 32_768),
        ("nomic-embed-text", 8_192, 0),
        ("qwen3-embedding-0.6b", 32_768, 0),
    ],
)
def test_well_known_families_are_found_by_their_names(
    database: LimitsDatabase, name: str, context_tokens: int, max_output_tokens: int
) -> None:
    """The particular entry goes before the general one, whatever the case and the spelling of the source."""
    limits = database.of(name, None)

    assert (limits.source, limits.context_tokens, limits.max_output_tokens) == (
        "database",
        context_tokens,
        max_output_tokens,
    )
    assert limits.pattern


def test_guess_is_small_and_says_that_it_is_one(database: LimitsDatabase) -> None:
    """Nobody takes the default for a fact."""
    limits = database.of("nobody-knows-me", None)

    assert (limits.source, limits.pattern, limits.context_tokens) == ("default", None, 2048)
    assert "guess" in limits.note and "there is no model 'nobody-knows-me' here" in limits.note


def test_remote_model_is_known_by_what_its_endpoint_calls_it(database: LimitsDatabase) -> None:
    """Its name here may be anything."""
    limits = database.of("home", entry("home", 0), known_as="llama3.2")

    assert (limits.source, limits.context_tokens, limits.model) == ("database", 131_072, "home")


def test_every_entry_names_its_source_and_can_be_reached() -> None:
    """A comment stands above each, and no pattern is hidden by an earlier entry."""
    text = SHIPPED_LIMITS.read_text()
    blocks = text.split("[[limit]]")
    assert all(re.search(r"^# \S.*\.$", above.rstrip().splitlines()[-1]) for above in blocks[:-1])

    database = LimitsDatabase()
    for pattern in re.findall(r'"([^"]*\*[^"]*)"', "".join(re.findall(r"models = \[.*\]", text))):
        name = re.sub(r"\[(.)[^]]*\]", r"\1", pattern).replace("*", "")
        assert database.of(name, None).pattern is not None, pattern
