"""Screens as they are meant to be, in tests/golden/: a changed one is a change that people see.

`OLYMPUS_TEST_WRITE_GOLDEN=1 pytest ...` writes those of the tests that run anew; look at the difference before it is kept.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from tests.tmux import Tmux

FOLDER: Final = Path(__file__).with_name("golden")

# A frame that is drawn is there by then, seconds.
_DRAWN_S: Final = 5.0


def assert_golden(screen: Tmux, name: str, ignore: str = "(?!)") -> None:
    """The screen becomes the one that is kept as `name`; what is drawn in several pieces may take a moment.

    ignore: a regular expression of what differs from run to run.
    """

    def kept(text: str) -> str:
        return re.sub(ignore, "~", text) + "\n"

    path = FOLDER / f"{name}.txt"
    if os.environ.get("OLYMPUS_TEST_WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(kept(screen.screen()))
    assert path.exists(), f"{path} is not there; OLYMPUS_TEST_WRITE_GOLDEN=1 writes it"
    wanted = path.read_text()
    screen.until(lambda text: kept(text) == wanted, f"the screen of {path.name}:\n{wanted}", within_s=_DRAWN_S)
