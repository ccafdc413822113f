"""The name that was probably meant, for errors about one that there is not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

# How alike two names must be, of 1 (difflib): "modle" is "model", and "zzz" nothing.
_ALIKE: Final = 0.6

# Characters of a name that are compared, since the time grows with their square; names that a hint lists.
_COMPARED: Final = 80
_LISTED: Final = 20


def nearest(wrong: str, known: Iterable[str]) -> str | None:
    """The only one that begins so, else the most alike; None where none is near."""
    from difflib import get_close_matches

    names = list(known)
    begun = [name for name in names if wrong and name.startswith(wrong)]
    if len(begun) == 1:
        return begun[0]
    return next(iter(get_close_matches(wrong[:_COMPARED], names, n=1, cutoff=_ALIKE)), None)


def hint(wrong: str, known: Iterable[str]) -> str:
    """How the error goes on: `did you mean 'model'?`, or which names there are."""
    names = list(known)
    if near := nearest(wrong, names):
        return f"did you mean {near!r}?"
    if not names:
        return "there is none"
    return f"there are: {', '.join(names[:_LISTED])}{', …' if len(names) > _LISTED else ''}"
