"""Cuts a text into the pieces that search finds: whole sentences where that works, never an empty piece.

Pure: knows no database and no encoder.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

from workers.memory.chunks import Piece

# Characters of one piece, at most: about 200 English words. The default encoder reads 256 tokens, and 1,000 characters
# of English prose are some 220.
PIECE_CHARACTERS: Final = 1_000

# Letters outside the Latin script cost the default encoder about one token each, so a text made of them alone is cut
# into pieces of PIECE_CHARACTERS / (1 + this) characters.
COST_OF_OTHER_SCRIPTS: Final = 3

# Characters that a piece repeats of the one before it, at most: the end of a thought is found with its beginning.
OVERLAP_CHARACTERS: Final = 150

_VISIBLE: Final = re.compile(r"\S")
_OTHER_SCRIPT: Final = re.compile("[\u0250-\U0010ffff]+")
_PARAGRAPH_END: Final = re.compile(r"\n[ \t\r]*\n")
_SENTENCE_END: Final = re.compile(r"[.!?\u2026][\"'\u2019\u201d)\]]*\s|[\u3002\uff01\uff1f]")


def cut(text: str) -> list[Piece]:
    """The pieces of `text` in order; none for a text of white space alone.

    Each is an exact range of the text without white space at its ends, and together they hold every other character.
    A piece ends, within its second half, at the last end of a paragraph, else of a sentence, a line or a word.
    """
    limit = _limit(text)
    pieces: list[Piece] = []
    visible = _VISIBLE.search(text)
    while visible is not None:
        start = visible.start()
        end, is_paragraph = _end(text, start, limit)
        piece = text[start:end].rstrip()
        pieces.append(Piece(piece, start, start + len(piece)))
        # Only what is not yet in a piece makes another one; the overlap alone does not.
        if _VISIBLE.search(text, end) is None:
            break
        visible = _VISIBLE.search(text, end if is_paragraph else _overlap_start(text, start, end))
    return pieces


def titled(pieces: Sequence[Piece], title: str) -> Sequence[Piece]:
    """The pieces of a document, found by its title too: it stands before the text of the first one.

    The ranges stay those of the content.
    """
    title = title.strip()
    if not title:
        return pieces
    if not pieces:
        return [Piece(title, 0, 0)]
    first = pieces[0]
    return [Piece(f"{title}\n{first.text}", first.start, first.end), *pieces[1:]]


def _limit(text: str) -> int:
    if text.isascii():
        return PIECE_CHARACTERS
    others = sum(match.end() - match.start() for match in _OTHER_SCRIPT.finditer(text))
    return int(PIECE_CHARACTERS / (1 + COST_OF_OTHER_SCRIPTS * others / len(text)))


def _end(text: str, start: int, limit: int) -> tuple[int, bool]:
    """Where the piece that begins at `start` ends, and whether a paragraph does."""
    highest = start + limit
    if highest >= len(text):
        return len(text), True
    lowest = start + limit // 2
    paragraph = _last_end(_PARAGRAPH_END, text, lowest, highest)
    if paragraph:
        return paragraph, True
    sentence = _last_end(_SENTENCE_END, text, lowest, highest)
    if sentence:
        return sentence, False
    line = text.rfind("\n", lowest, highest)
    if line >= 0:
        return line + 1, False
    for end in range(highest, lowest, -1):
        if text[end - 1].isspace():
            return end, False
    return _between_characters(text, lowest, highest), False


def _overlap_start(text: str, start: int, end: int) -> int:
    """Where the next piece begins: with the last sentences of this one, or its last words, as far as they are short."""
    lowest = max(start + 1, end - OVERLAP_CHARACTERS)
    sentence = _SENTENCE_END.search(text, lowest, end)
    if sentence is not None and sentence.end() < end:
        return sentence.end()
    for begin in range(max(lowest, end - OVERLAP_CHARACTERS // 2), end):
        if text[begin].isspace():
            return begin
    return end


def _last_end(pattern: re.Pattern[str], text: str, lowest: int, highest: int) -> int:
    """Where the last match between the two ends; 0 without one."""
    last = 0
    for match in pattern.finditer(text, lowest, highest):
        last = match.end()
    return last


def _between_characters(text: str, lowest: int, highest: int) -> int:
    """`highest`, or the place before it that separates no letter from its marks."""
    end = highest
    while end > lowest and unicodedata.combining(text[end]):
        end -= 1
    return end if end > lowest else highest
