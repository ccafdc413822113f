"""Examples on their way into the store, and what became of them; knows neither filters nor tables."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from schemas.bodies.learning_data import RowKind
from schemas.bodies.model import ChatMessage

# Characters of all texts of one row. A training sequence holds some thousand tokens; this is two hundred times that.
ROW_CHARACTERS_MAX: Final = 1_048_576

# Kind of the answers that nobody judged. They are repeated while something else is taught (pseudo-rehearsal: Robins,
# "Catastrophic forgetting, rehearsal and pseudorehearsal", Connection Science 7, 1995), and no standard for anything.
UNRATED: Final = "unrated"
# Kinds that the model itself answered: whatever was taught goes before them.
UNTAUGHT: Final = frozenset({"exchange", UNRATED})


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """An example as it is handed in: either messages or prompt.

    memory_ids: `memory/NS/ID`, `fact/NS/KEY`, `doc/NS/ID`, or the bare id of a memory. evidence: ids of the exchange,
    feedback or evaluation it was made of. is_retention: kept as what must not be forgotten, never trained on.
    """

    model: str
    kind: RowKind
    answer: str
    messages: list[ChatMessage] = []
    prompt: str | None = None
    rejected: str | None = None
    user: str = ""
    session_id: str = ""
    memory_ids: list[str] = []
    evidence: list[str] = []
    opportunity_id: str = ""
    is_retention: bool = False
    source: str = ""


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one draft. row_id: of the new row or of the one known already, "" for a refused draft."""

    outcome: Literal["added", "duplicate", "quarantined", "refused"]
    row_id: str = ""
    reason: str = ""
    split: str = ""


class TrainFile(msgspec.Struct, frozen=True, kw_only=True):
    """The file a trainer reads. preferences: rows with a worse answer beside the better one."""

    rows: int
    preferences: int
    sha256: str
    size_bytes: int


def fault_of(draft: Draft) -> str:
    """Why this is no example, naming the field, its value and what is allowed; "" when it is one."""
    if bool(draft.messages) == (draft.prompt is not None):
        given = "both" if draft.messages else "neither"
        return f"an example has either messages or prompt; this one has {given}"
    if not draft.answer.strip():
        return "answer is empty, it must hold at least one character that is no white space"
    if draft.prompt is not None and not draft.prompt.strip():
        return "prompt is empty, it must hold at least one character that is no white space"
    if draft.messages:
        if draft.messages[-1].role not in {"user", "tool"}:
            return f"messages end with role {draft.messages[-1].role!r}, the last one must be a user's or a tool's"
        if not any(message.role == "user" and message.content.strip() for message in draft.messages):
            return "messages hold no text of a user"
    if draft.rejected is not None and not draft.rejected.strip():
        return "rejected is empty, it must be a text or be left out"
    if draft.rejected is not None and draft.rejected.strip() == draft.answer.strip():
        return "rejected equals answer, it must be a worse one"
    return _fault_of_texts(draft)


def _fault_of_texts(draft: Draft) -> str:
    size = 0
    for field, text in texts_of(draft).items():
        size += len(text)
        bad = next((index for index, char in enumerate(text) if _is_no_text(char)), None)
        if bad is not None:
            return f"{field} holds the character U+{ord(text[bad]):04X} at {bad}, it must be text"
    if size > ROW_CHARACTERS_MAX:
        return f"its texts have {size} characters, the limit is {ROW_CHARACTERS_MAX}"
    return ""


def _is_no_text(char: str) -> bool:
    code = ord(char)
    return (code < 0x20 and char not in "\t\n\r\f") or 0xD800 <= code <= 0xDFFF


def texts_of(draft: Draft) -> dict[str, str]:
    """Every text of it by the name of its field: `messages[0].content`, `prompt`, `answer`, `rejected`."""
    texts = {f"messages[{index}].content": message.content for index, message in enumerate(draft.messages)}
    for index, message in enumerate(draft.messages):
        for number, tool_call in enumerate(message.tool_calls):
            texts[f"messages[{index}].tool_calls[{number}].arguments"] = tool_call.arguments
    if draft.prompt is not None:
        texts["prompt"] = draft.prompt
    texts["answer"] = draft.answer
    if draft.rejected is not None:
        texts["rejected"] = draft.rejected
    return texts


def plain(draft: Draft) -> dict[str, Any]:
    """Its texts as builtin values: what is kept, hashed and trained on."""
    return {
        "messages": msgspec.to_builtins(draft.messages) if draft.messages else None,
        "prompt": draft.prompt,
        "answer": draft.answer,
        "rejected": draft.rejected,
    }
