"""What the files of one model say about it, whatever their format."""

from __future__ import annotations

from typing import Final

import msgspec

from workers.models.facts import Facts

# Longest chat template that is shown, characters. Templates have up to 30,000.
_MAX_TEMPLATE_CHARS: Final = 262_144


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """is_embedding: makes vectors of texts and cannot continue them. can_see: reads images too."""

    family: str
    quantisation: str
    parameters: int
    context_tokens: int
    facts: Facts
    description: str = ""
    license: str = ""
    chat_template: str | None = None
    is_embedding: bool = False
    can_see: bool = False

    @property
    def shown_template(self) -> str | None:
        """The chat template, unless it is too long to be read."""
        template = self.chat_template
        return template if template is not None and len(template) <= _MAX_TEMPLATE_CHARS else None
