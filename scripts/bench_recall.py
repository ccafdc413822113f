#!/usr/bin/env python3
"""Measure what memory.search finds beside BM25 alone and vectors alone, by kind of question. See docs/search.md."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

# The bench reads the tree it stands in, wherever it is called from.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_recall_parts import collection
from bench_recall_parts.bm25 import FORMS, bm25
from bench_recall_parts.collection import BadData, Conversation
from bench_recall_parts.dense import BareVectors
from bench_recall_parts.product import opened
from bench_recall_parts.scores import DEPTHS, Scores
from bus.settings import SettingsError, load_settings, parse_overrides
from schemas.bodies.search import Mode
from workers.memory.vectors.unavailable import EncoderUnavailable

OURS: Final = "memory.search"
MODES: Final[dict[Mode, str]] = {"text": "memory.search, mode text", "hybrid": OURS}
DENSE: Final = "vectors alone"
PREFIXED: Final = "vectors alone, with speaker and time"

# What ours has to reach: this times the recall@10 of vectors alone, and so many points over the best BM25.
TIMES_DENSE: Final = 2.0
OVER_BM25: Final = 15.0

NO_DATA: Final = """bench_recall.py: give --data FILE, a JSON file of texts, questions and the ids of the texts that answer:
  {"conversations": [{"id": "garden",
    "turns": [{"id": "1", "session": 1, "time": "2024-05-03T10:00:00", "speaker": "Ana", "text": "...", "caption": null}],
    "questions": [{"question": "...", "kind": "single-hop", "evidence": ["1"]}]}]}
session, time, speaker, caption and kind may be left out. docs/search.md says more."""

EPILOG = """examples:
  scripts/bench_recall.py --data conversations.json
  scripts/bench_recall.py --data conversations.json --json | tail -n 1
  scripts/bench_recall.py --data conversations.json --set search.dense_weight=0.8
exit codes: 0 measured, 1 no encoder, 2 wrong arguments or data"""


async def _measure(conversations: Sequence[Conversation], overrides: dict[str, str]) -> list[Scores]:
    deepest = max(DEPTHS)
    by_words = {form: Scores(form) for form in FORMS}
    dense, prefixed = Scores(DENSE), Scores(PREFIXED)
    ours = {mode: Scores(name) for mode, name in MODES.items()}
    with tempfile.TemporaryDirectory(prefix="bench_recall-") as folder:
        async with opened(load_settings(overrides={**overrides, "home": folder})) as product:
            for conversation in conversations:
                print(f"{conversation.id}: {len(conversation.turns)} turns ...", file=sys.stderr)
                await product.ingest(conversation)
            await product.embedded()
            for conversation in conversations:
                finders = {form: bm25(conversation, form, deepest) for form in FORMS}
                bare = await BareVectors.of(conversation, product.encoder)
                for question, evidence in conversation.asked():
                    groups = [question.kind, f"in {conversation.id}"]
                    for form, find in finders.items():
                        began = time.perf_counter()
                        found = find(question.question)
                        by_words[form].add(groups, found, evidence, time.perf_counter() - began)
                    (vector,) = await product.encoder.encode([question.question], is_query=True)
                    began = time.perf_counter()
                    found = bare.nearest(vector, deepest)
                    dense.add(groups, found, evidence, time.perf_counter() - began)
                    found, took_s = await product.nearest(conversation, vector, deepest)
                    prefixed.add(groups, found, evidence, took_s)
                    for mode, scores in ours.items():
                        found, took_s = await product.find(conversation, question.question, mode, deepest)
                        scores.add(groups, found, evidence, took_s)
    return [*by_words.values(), dense, prefixed, *ours.values()]


def _print(measured: Sequence[Scores]) -> None:
    width = max(len(scores.name) for scores in measured)
    for group, count in measured[-1].groups().items():
        print(f"\n{group}, {count} questions")
        print(" " * width + "".join(f"{f'@{depth}':>8}" for depth in DEPTHS) + f"{'MRR':>8}")
        for scores in measured:
            print(f"{scores.name:<{width}}" + "".join(f"{figure:8.1f}" for figure in scores.figures(group)))
    print(f"\n{'ms per query beside encoding':<{width}}{'p50':>8}{'p95':>8}")
    for scores in measured:
        median, p95 = scores.milliseconds()
        print(f"{scores.name:<{width}}{median:8.2f}{p95:8.2f}")


def _compare(measured: Sequence[Scores]) -> dict[str, float]:
    at_10 = {scores.name: scores.figures()[DEPTHS.index(10)] for scores in measured}
    best = max(at_10[form] for form in FORMS)
    return {
        "times_dense": at_10[OURS] / max(at_10[DENSE], 1e-9),
        "times_prefixed_dense": at_10[OURS] / max(at_10[PREFIXED], 1e-9),
        "points_over_bm25": at_10[OURS] - best,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables, and with --json the figures."""
    parser = argparse.ArgumentParser(
        prog="bench_recall.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, metavar="FILE", help="texts, questions and their evidence, as JSON")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="one setting; may be repeated")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args(argv)
    if args.data is None:
        print(NO_DATA, file=sys.stderr)
        return 2
    try:
        conversations = collection.read(args.data)
        measured = asyncio.run(_measure(conversations, parse_overrides(args.set)))
    except (BadData, SettingsError) as error:
        print(f"bench_recall.py: {error}", file=sys.stderr)
        return 2
    except EncoderUnavailable as error:
        print(f"bench_recall.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    compared = _compare(measured)
    _print(measured)
    print(
        f"\nrecall@10: {compared['times_dense']:.2f} times vectors alone (wanted {TIMES_DENSE:g};"
        f" {compared['times_prefixed_dense']:.2f} times those that know speaker and time),"
        f" {compared['points_over_bm25']:+.1f} points to the best BM25 (wanted +{OVER_BM25:g})"
    )
    if args.json:
        print(json.dumps({**{scores.name: scores.as_json() for scores in measured}, **compared}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
