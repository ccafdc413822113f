"""What is done about secrets and personal data in an example: replaced in the question, kept out when in an answer.

Pure: the findings come from finder_process.py. No reason names what was found, only its kind and where.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from workers.learning.curation.drafts import Draft, texts_of
from workers.learning.curation.finder_process import Found


class Cleaned(NamedTuple):
    """quarantine: why it may not be trained on, "" when it may. note: what was replaced, "" for nothing."""

    draft: Draft
    quarantine: str
    note: str


def clean(draft: Draft, findings: Sequence[Sequence[Found]]) -> Cleaned:
    """The draft as it may be kept. `findings`: one list for each text of `texts_of(draft)`, in that order.

    A placeholder such as `[phone number]` stands for what was found in a question. What a model would learn to say cannot
    be replaced without teaching the placeholder, so an example with a finding in its answer is kept out for a person to
    decide; a secret is replaced there all the same, because it must not lie on disk.
    """
    replaced: dict[str, str] = {}
    kept_out: dict[str, None] = {}
    notes: dict[str, None] = {}
    for (field, text), found in zip(texts_of(draft).items(), findings, strict=True):
        is_learned = field in {"answer", "rejected"}
        for one in found:
            (kept_out if is_learned else notes)[f"{one.kind} in {field}"] = None
        wanted = [one for one in found if one.is_secret or not is_learned]
        if wanted:
            replaced[field] = _without(text, wanted)
    quarantine = f"holds {', '.join(kept_out)}" if kept_out else ""
    return Cleaned(_with_texts(draft, replaced), quarantine, f"replaced {', '.join(notes)}" if notes else "")


def _without(text: str, findings: Sequence[Found]) -> str:
    parts: list[str] = []
    at = 0
    for one in findings:
        parts += (text[at : one.start], f"[{one.kind}]")
        at = one.end
    return "".join((*parts, text[at:]))


def _with_texts(draft: Draft, texts: dict[str, str]) -> Draft:
    if not texts:
        return draft
    messages = []
    for index, message in enumerate(draft.messages):
        tool_calls = [
            msgspec.structs.replace(
                call, arguments=texts.get(f"messages[{index}].tool_calls[{number}].arguments", call.arguments)
            )
            for number, call in enumerate(message.tool_calls)
        ]
        content = texts.get(f"messages[{index}].content", message.content)
        messages.append(msgspec.structs.replace(message, content=content, tool_calls=tool_calls))
    return msgspec.structs.replace(
        draft,
        messages=messages,
        prompt=texts.get("prompt", draft.prompt),
        answer=texts.get("answer", draft.answer),
        rejected=texts.get("rejected", draft.rejected),
    )
