#!/usr/bin/env python3
"""Writes the table of docs/metrics.md from schemas/metrics.py; with --check only says whether it is up to date."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from schemas.metrics import METRICS  # noqa: E402

DOCUMENT = ROOT / "docs" / "metrics.md"

# What stands below it is made here, to the end of the document.
HEADING = "## Every metric\n"

EXPLANATION = """
From `schemas/metrics.py`, by `scripts/make_metrics_doc.py`; change it there. Each has the labels `service` and `worker`
too, those of machines (`olympus_host_`) apart. A histogram is `_bucket` with `le`, `_sum` and `_count`.

| metric | kind | labels | |
|---|---|---|---|
"""


def main() -> int:
    """Write the table, or compare it; 1 when it differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; end with 1 when the document is out of date"
    )
    is_check = parser.parse_args().check
    written = DOCUMENT.read_text(encoding="utf-8")
    head, heading, _ = written.partition(HEADING)
    if not heading:
        print(f"{DOCUMENT.relative_to(ROOT)} has no heading {HEADING.strip()!r}", file=sys.stderr)
        return 1
    rows = [
        f"| `{metric.name}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels)} | {metric.help} |\n"
        for metric in METRICS.values()
    ]
    text = f"{head}{HEADING}{EXPLANATION}{''.join(rows)}"
    if not is_check:
        DOCUMENT.write_text(text, encoding="utf-8")
        return 0
    if text == written:
        return 0
    print(f"{DOCUMENT.relative_to(ROOT)} is out of date: run scripts/make_metrics_doc.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
