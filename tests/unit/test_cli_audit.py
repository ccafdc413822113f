"""`olympus audit`: how its lines are shown."""

from __future__ import annotations

from bus.cli import audit
from schemas.bodies.telling import AuditEntry


def test_what_was_tried_stays_in_its_line_whatever_is_in_it() -> None:
    """Ends of lines, escapes and whole pages of reasons: a refused name must not look like a line of the log."""
    entry = AuditEntry(
        kind="refusal",
        actor="eve\n2      2026-01-01 00:00:00  sign_in  ada",
        action="subscribe a\nb",
        reason="r" * 500,
        outcome="forbidden",
        service="bus",
        host="mainpc",
        address="\x1b[2J",
        count=3,
        at=0.0,
        id=7,
        hash="ab",
    )

    cells = audit._row(entry)

    assert cells[0] == "7" and cells[6] == "forbidden x3"
    assert all(cell.isprintable() and len(cell) <= 60 for cell in cells)
