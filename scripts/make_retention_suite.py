#!/usr/bin/env python3
"""Writes the retention suite of the demo model: held-out chats of every task it knows, as cases of a file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from demo_model.tasks import Conversation, held_out_checks

SHIPPED = Path(__file__).resolve().parent.parent / "workers" / "learning" / "gate" / "suites" / "olympus-demo.jsonl"

# Not a seed of the figures in `held_out.json`: what the gate asks is no part of what the model was judged by.
SEED = 815

# Its one long text, of which every answer is nearly the same: it would take longer than all other cases together.
LEFT_OUT = frozenset({"story"})

# Tasks whose answers are facts: cases with one answer are about one fact. Elsewhere each case stands alone.
FACTS = frozenset({"greeting", "small_talk", "olympus", "opposite", "capital"})

EPILOG = """examples:
  scripts/make_retention_suite.py             the shipped file, again, in place
  scripts/make_retention_suite.py --rows 10   a smaller one"""


def cases(rows: int) -> Iterator[dict[str, object]]:
    """Each case once, `rows` of a task at most."""
    seen: set[str] = set()
    for task, chats in held_out_checks(SEED, 4 * rows).items():
        number = 0
        for chat in chats if task not in LEFT_OUT else []:
            asked = json.dumps(chat.messages()[:-1])
            if number < rows and asked not in seen:
                seen.add(asked)
                number += 1
                yield case(task, number, chat)


def case(task: str, number: int, chat: Conversation) -> dict[str, object]:
    """One line of the file."""
    answer = chat.turns[-1].answer
    return {
        "id": f"{task}-{number}",
        "messages": chat.messages()[:-1],
        "expect": answer,
        **({"cluster": f"{task}: {answer}"} if task in FACTS else {}),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file, and say how many cases it has."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=SHIPPED, metavar="FILE", help="where to write (the shipped file)")
    parser.add_argument("--rows", type=int, default=60, metavar="N", help="cases of a task at most (60)")
    plan = parser.parse_args(argv)
    lines = [json.dumps(one, ensure_ascii=False) for one in cases(plan.rows)]
    plan.out.parent.mkdir(parents=True, exist_ok=True)
    plan.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{plan.out}: {len(lines)} cases", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
