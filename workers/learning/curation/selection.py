"""Chooses the rows of a version of a dataset: what is taught, tested, repeated and guarded; pure.

    side of its fact     new to this version     earlier data
    trained              train                   replay      (a share of the training rows)
    held                 held_out                retention   (what must not be forgotten)

A fact is on one side for good, so no row of replay shares one with retention, and none of train with held_out.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from schemas.bodies.learning_data import Split
from workers.learning.curation.drafts import UNRATED, UNTAUGHT
from workers.learning.curation.guards import NEUTRAL_TRUST, person_caps

# Rows of a retention set at most: 1,200 show a loss of three points with power 0.84, and each is asked of two models.
RETENTION_ROWS: Final = 2_000

# Replay rows at least, where there are so many: beside a short lesson a share of its rows is too little. Six lessons of 80
# rows, one after another, keep 86 % of what the demo model knew with it and 68 % without (scripts/bench_continual.py).
REPLAY_ROWS: Final = 240

# Why a row of the selection was left out, beside the causes of quarantine.
PERSON_CAP: Final = "too many of one person"
OVER_MAX: Final = "older than the newest max_rows"


class Candidate(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One row as far as choosing it goes. is_earlier: it is not of this selection, but was learned or kept before."""

    number: int
    sha256: str
    user: str
    kind: str
    cluster: str
    is_held: bool
    is_earlier: bool


class Chosen(msgspec.Struct, frozen=True, gc=False):
    """One row of the version."""

    number: int
    split: Split
    cluster: str
    kind: str
    sha256: str


class Selection(msgspec.Struct, frozen=True):
    """rows: in the order they are frozen in. left_out: counts by reason."""

    rows: list[Chosen]
    left_out: dict[str, int]


def select(
    candidates: Sequence[Candidate],
    *,
    replay_share: float,
    person_share: float,
    max_rows: int,
    trust: Mapping[str, float],
) -> Selection:
    """The rows of one version. `candidates` are ready rows, the oldest first; those of the selection and earlier ones.

    replay_share: part of the training rows that are earlier data, as far as there are any, and not under `REPLAY_ROWS`; 0
    for none. person_share: see
    `guards.person_caps`. max_rows: of the selection; the newest stay.
    """
    wanted = [row for row in candidates if not row.is_earlier]
    left_out: Counter[str] = Counter()
    left_out[OVER_MAX] = max(len(wanted) - max_rows, 0)
    wanted = wanted[-max_rows:]
    train = _capped([row for row in wanted if not row.is_held], person_share, trust, left_out)
    held_out = _capped([row for row in wanted if row.is_held], person_share, trust, left_out)
    taken = {row.cluster for row in wanted}
    earlier = [row for row in candidates if row.is_earlier and row.cluster not in taken]
    replay = _replayed([row for row in earlier if not row.is_held], train, replay_share)
    # What nobody judged is no standard to be measured by.
    guarded = (row for row in earlier if row.is_held and row.kind != UNRATED)
    retention = _drawn(guarded, RETENTION_ROWS, salt="drawn")
    rows = [
        Chosen(row.number, split, row.cluster, row.kind, row.sha256)
        for split, part in _named(train, held_out, replay, retention)
        for row in sorted(part, key=lambda row: row.number)
    ]
    return Selection(rows, {reason: count for reason, count in left_out.items() if count})


def content_hash(rows: Iterable[Chosen], model_sha256: str, metric: str) -> str:
    """SHA-256 over the base model, the metric and the rows in their order: equal for equal content only."""
    whole = hashlib.sha256(f"{model_sha256}\n{metric}\n".encode())
    for row in rows:
        whole.update(f"{row.split} {row.cluster} {row.sha256}\n".encode())
    return whole.hexdigest()


def _named(
    train: list[Candidate], held_out: list[Candidate], replay: list[Candidate], retention: list[Candidate]
) -> list[tuple[Split, list[Candidate]]]:
    return [("train", train), ("held_out", held_out), ("replay", replay), ("retention", retention)]


def _replayed(earlier: Sequence[Candidate], train: Sequence[Candidate], share: float) -> list[Candidate]:
    """Earlier rows beside those to be taught, half of them taught before and half answered by the model itself.

    Which ones depends on what is taught, so that one training after another does not repeat the same few.
    """
    if not train or not share:
        return []
    count = max(round(share / (1 - share) * len(train)), REPLAY_ROWS)
    untaught = [row for row in earlier if row.kind in UNTAUGHT]
    taught = [row for row in earlier if row.kind not in UNTAUGHT]
    of_taught = min(len(taught), max(count // 2, count - len(untaught)))
    salt = hashlib.sha256("".join(sorted(row.sha256 for row in train)).encode()).hexdigest()
    return _drawn(taught, of_taught, salt) + _drawn(untaught, count - of_taught, salt)


def _drawn(rows: Iterable[Candidate], count: int, salt: str) -> list[Candidate]:
    """`count` of them by their hashes with the salt: a sample without chance."""
    return sorted(rows, key=lambda row: hashlib.sha256(f"{salt} {row.sha256}".encode()).digest())[:count]


def _capped(
    rows: list[Candidate], person_share: float, trust: Mapping[str, float], left_out: Counter[str]
) -> list[Candidate]:
    people = {row.user for row in rows}
    caps = person_caps(
        Counter(row.user for row in rows),
        {user: trust.get(user, NEUTRAL_TRUST) for user in people},
        share=person_share,
    )
    given: Counter[str] = Counter()
    kept = []
    # The newest of a person count first.
    for row in reversed(rows):
        given[row.user] += 1
        if given[row.user] <= caps.get(row.user, len(rows)):
            kept.append(row)
    left_out[PERSON_CAP] += len(rows) - len(kept)
    return kept[::-1]
