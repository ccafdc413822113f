"""How useful a known fact is to a prompt: an SQL expression, because of 100,000 facts a prompt holds a few dozen.

SQLite ranks that many in 65 ms beside the event loop; as rows of Python it takes four times as long, and holds it up.
"""

from __future__ import annotations

import math
import sqlite3
from typing import Final

# Categories that stay true: one of these, never used, ranks with anything else written this moment.
LASTING_CATEGORIES: Final = ("preference", "fact")

# Days after which a fact nobody touches counts half as recent.
RECENCY_HALF_LIFE_DAYS: Final = 30.0

# Uses past this many add nothing more.
FULL_USE_COUNT: Final = 1_023

# Rank of a row of `facts`, 0 to 3: lasting + recency + use. Takes one value, the present in epoch seconds.
# lasting: 1 for a preference or a fact, else 0. recency: 2 ** (-days / 30) since the last write or recall.
# use: log2(1 + recalls) / 10, at most 1.
USEFULNESS: Final = (
    f"((category IN {LASTING_CATEGORIES})"
    " + pow(2.0, -max(0.0, ? - max(updated_at, coalesce(last_accessed_at, 0.0)))"
    f" / {86_400 * RECENCY_HALF_LIFE_DAYS})"
    f" + log2(1 + min(access_count, {FULL_USE_COUNT})) / 10)"
)


def provide_functions(connection: sqlite3.Connection) -> None:
    """See to it that `USEFULNESS` can be computed: not every SQLite is built with the functions of mathematics."""
    try:
        connection.execute("SELECT pow(2.0, 1.0), log2(2.0)").fetchone()
    except sqlite3.OperationalError as error:
        if "no such function" not in str(error):
            raise
        connection.create_function("pow", 2, math.pow, deterministic=True)
        connection.create_function("log2", 1, math.log2, deterministic=True)
