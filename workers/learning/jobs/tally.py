"""What became of trainings since the service started, in plain numbers that others read."""

from __future__ import annotations


class Tally:
    """ended: trainings by how they ended. tokens: trained on, of all processes, padding not counted."""

    def __init__(self) -> None:
        self.ended = {"finished": 0, "failed": 0, "stopped": 0}
        self.tokens = 0
