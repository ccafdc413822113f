"""A real terminal for tests: a tmux server of its own, in which a program runs, is typed to, and is looked at.

with Tmux(tmp_path, ["python", "-m", "bus.cli.app", "chat"], columns=80, rows=24) as screen:
    screen.wait_for("› ")
    screen.keys("hello", "Enter")
    screen.wait_for("You said: hello")
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

# How long anything that must happen may take before a test says what was on the screen instead.
SOON_S = 20.0

# The window outlives its program, so that its last words can be read.
_OPTIONS = ("remain-on-exit on", "history-limit 20000", "status off", "default-terminal tmux-256color", "escape-time 0")


class Tmux:
    """A program in a window of `columns` x `rows`; the server ends with the block, and everything in it."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        columns: int = 80,
        rows: int = 24,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        program = shutil.which("tmux")
        if program is None:
            pytest.skip("tmux is not installed")
        # A folder with a short name: the path of a unix socket has a hundred characters at most.
        self._folder = Path(tempfile.mkdtemp(prefix="tmux-"))
        self.folder = folder or Path.cwd()
        settings = self._folder / "tmux.conf"
        settings.write_text("".join(f"set-option -g {option}\n" for option in _OPTIONS))
        self._tmux = [program, "-S", str(self._folder / "s"), "-f", str(settings)]
        self._environment = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "SHELL": "/bin/sh"}
        self._environment.pop("TMUX", None)
        self._start(command, columns, rows, environment or {}, folder)

    def _start(
        self, command: Sequence[str], columns: int, rows: int, environment: Mapping[str, str], folder: Path | None
    ) -> None:
        given = [part for name, value in environment.items() for part in ("-e", f"{name}={value}")]
        place = ["-c", str(folder)] if folder is not None else []
        size = ["-x", str(columns), "-y", str(rows)]
        self._do("new-session", "-d", *size, *given, *place, f"exec {shlex.join(command)}")

    def keys(self, *keys: str) -> None:
        """Press keys, each a name of tmux (Enter, C-c, M-Enter, Up) or a text to type."""
        for key in keys:
            is_name = re.fullmatch(r"[CM]-.+|Enter|Escape|Tab|BSpace|Up|Down|Left|Right|Home|End", key)
            self._do("send-keys", *([key] if is_name else ["-l", "--", key]))

    def paste(self, text: str, *, is_marked: bool = True) -> None:
        """Paste a text of any length, as terminals do it: marked where the program asked for that."""
        file = self._folder / "paste"
        file.write_text(text)
        self._do("load-buffer", str(file))
        self._do("paste-buffer", "-d", *(["-p"] if is_marked else []))

    def screen(self, *, has_styles: bool = False) -> str:
        """What is on the screen, without empty lines at its end; with `has_styles` also the codes of its colours."""
        text = self._do("capture-pane", "-p", *(["-e"] if has_styles else []))
        return "\n".join(line.rstrip() for line in text.rstrip().splitlines())

    def everything(self) -> str:
        """What has left the screen at the top, and what is on it; lines that the terminal wrapped are joined."""
        text = self._do("capture-pane", "-p", "-J", "-S", "-")
        return "\n".join(line.rstrip() for line in text.rstrip().splitlines())

    def wait_for(self, text: str, *, within_s: float = SOON_S) -> str:
        """The screen as soon as `text`, a regular expression, is on it."""
        return self.until(lambda screen: re.search(text, screen, re.MULTILINE) is not None, text, within_s=within_s)

    def until(self, is_there: Callable[[str], bool], what: str, *, within_s: float = SOON_S) -> str:
        """The screen as soon as it is as wanted; fails with what is on it instead."""
        give_up_at = time.monotonic() + within_s
        while not is_there(screen := self.screen()):
            if time.monotonic() > give_up_at:
                pytest.fail(f"not on the screen within {within_s:g} s: {what}\n{screen}")
            time.sleep(0.02)
        return screen

    def wait_end(self) -> int:
        """The exit status of the program as soon as it has ended, the negative number of the signal that ended it."""
        give_up_at = time.monotonic() + SOON_S
        # Tmux sees the terminal close before it hears how the program ended.
        while not (ended := self._format("pane_dead_status")) and not (killed := self._format("pane_dead_signal")):
            if time.monotonic() > give_up_at:
                pytest.fail(f"the program does not end\n{self.screen()}")
            time.sleep(0.02)
            if self._format("pane_dead") == "1":
                # Now and then tmux 3.3 loses the signal of a child's end, and leaves it a zombie: once more.
                os.kill(int(self._format("pid")), signal.SIGCHLD)
        return int(ended) if ended else -int(killed)

    def resize(self, columns: int, rows: int) -> None:
        """Give the window another size."""
        self._do("resize-window", "-x", str(columns), "-y", str(rows))

    def close(self) -> None:
        """End the program and the server."""
        self._do("kill-server", may_fail=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _format(self, name: str) -> str:
        return self._do("display-message", "-p", f"#{{{name}}}").strip()

    def _do(self, *arguments: str, may_fail: bool = False) -> str:
        done = subprocess.run(
            [*self._tmux, *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=SOON_S,
            env=self._environment,
        )
        if done.returncode and not may_fail:
            pytest.fail(f"tmux {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout
