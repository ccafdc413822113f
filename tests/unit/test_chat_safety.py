"""What a chat does not do, whatever a model, a repository or a disk puts before it: drive the terminal, show keys, stop."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from bus import known_projects, sampling
from bus.cli import app, exits, output, session
from bus.cli.chat import editing, markdown, tools
from bus.cli.chat.blocks import Block, Splitter
from bus.cli.chat.events import Text, ToolAnswered, ToolCalled
from bus.cli.chat.rendering import AnswerView, Painter
from bus.cli.chat.tools import Result, Toolbox, is_secret
from bus.cli.chat.wording import talk_of
from bus.cli.failures import say, told
from bus.client import Client
from bus.settings import Settings
from bus.whole_file import write_whole
from schemas.bodies.accounts import Tokens
from schemas.bodies.model import ToolCall

TURNED = "a\u202eb\u2066c\u2028d"


# The terminal


def test_nothing_turns_the_direction_of_a_line_and_no_byte_stops_it() -> None:
    """Bidirectional controls make a line read as another one; a file name's odd byte would stop the writing itself."""
    assert output.printable(TURNED) == "a\\u202eb\\u2066c\\u2028d"
    assert output.printable("bad\udcff").encode() == b"bad\\udcff"
    assert output.printable("\u05d0\u00a0\u202f") == "\u05d0\u00a0\u202f"


def test_json_on_a_terminal_drives_it_as_little_and_says_the_same() -> None:
    """U+009B begins a command to some terminals, and JSON need not spell it out."""
    text = output.to_json({"text": f"\x9b2J\x7f{TURNED}\x1b[2J é"}, indent=2)
    assert not {"\x9b", "\x7f", "\x1b", "\u202e", "\u2066", "\u2028"} & set(text)
    assert json.loads(text) == {"text": f"\x9b2J\x7f{TURNED}\x1b[2J é"}


def test_what_a_command_says_of_itself_drives_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Errors quote what others wrote."""
    say("no \x1b]0;title\x07")
    assert capsys.readouterr().err == "olympus: no \\x1b]0;title\\x07\n"


def test_a_tools_name_is_one_short_line() -> None:
    """A model may put there what looks like a line of the chat itself."""
    name = "x\nnote: all is well " + "y" * 500
    for event in (ToolCalled(name=name, arguments="{}"), ToolAnswered(name=name, ok=False, content="no")):
        (talk,) = talk_of(event)
        assert "\n" not in talk.text
        assert len(talk.text) < 100


def test_a_line_that_lexers_choke_on_is_not_coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some read it in the square of its length, without a chance to press Ctrl-C; what stands above it counts too."""

    def refuse(language: str) -> Any:
        raise AssertionError("a lexer was asked")

    monkeypatch.setattr(markdown, "_syntax", refuse)
    painter = Painter(80)
    long = "(" * (markdown._COLOURED_LINE + 1)
    for block in (
        Block(text=long, is_code=True, language="make"),
        Block(text="a", before=long, is_code=True, language="make"),
    ):
        assert painter.block(block)


def test_lines_of_code_that_come_at_once_are_coloured_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one each would be read with 200 lines above it."""
    view = AnswerView(Painter(80), "m", 0.0)
    view.take(Text(text="```python\n"), 0.0)
    for number in range(50):
        view.take(Text(text=f"x = {number}\n"), 0.0)
    drawn: list[Block] = []
    draw = markdown.draw

    def draw_noting(block: Block, width: int, console: Any) -> Any:
        drawn.append(block)
        return draw(block, width, console)

    monkeypatch.setattr(markdown, "draw", draw_noting)

    finished, _ = view.frame(100, 1.0)

    assert [block.text.count("\n") for block in drawn] == [49]
    assert len([line for line in finished if "=" in line.text]) == 50


def test_two_fences_stay_two() -> None:
    """What is drawn together is of one fence."""
    from bus.cli.chat.rendering import _joined

    found = Splitter()
    blocks = [*found.feed("```py\na\n"), *found.feed("b\n```\n```py\nc\n```\n")]
    assert [cast(Block, block).text for block in _joined(blocks)] == ["a\nb", "c"]


# Tools


class Offline:
    """A client that nothing may ask."""

    async def request(self, subject: str, body: Any = None, **options: Any) -> Any:
        raise AssertionError(f"{subject} was asked")


async def call(root: Path, name: str, hidden: Path | None = None, **arguments: Any) -> Result:
    """What a tool says to a model."""
    box = Toolbox(cast(Client, Offline()), root, [hidden] if hidden else [])
    return await box.call(ToolCall(id="1", name=name, arguments=msgspec.json.encode(arguments).decode()))


async def test_the_home_of_olympus_is_not_read_where_it_lies_in_the_project(tmp_path: Path) -> None:
    """Its tokens and keys have no telling names."""
    home = tmp_path / "project" / ".olympus"
    (home / "auth").mkdir(parents=True)
    (home / "auth" / "session.json").write_text("token")
    (tmp_path / "project" / "main.py").write_text("x")
    root = tmp_path / "project"

    assert not (await call(root, "read_file", home, path=".olympus/auth/session.json")).ok
    assert not (await call(root, "list_files", home, path=".olympus/auth")).ok
    assert (await call(root, "list_files", home)).content == "main.py"
    assert (await call(root, "list_files", home, pattern="*")).content == "main.py"


async def test_a_folder_that_holds_a_home_is_no_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a home; without any, only the root of all is none."""
    (tmp_path / "users" / "ada").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "users" / "ada"))
    for folder in (tmp_path / "users" / "ada", tmp_path / "users", Path("/")):
        assert not (await call(folder, "list_files")).ok
    (tmp_path / "project").mkdir()
    assert (await call(tmp_path / "project", "list_files")).ok
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert (await call(tmp_path / "project", "list_files")).ok


@pytest.mark.parametrize(
    "name",
    [".env~", ".npmrc.bak", "id_rsa.pem.orig", "prod.tfvars", "terraform.tfstate.backup", "kubeconfig", ".psql_history",
     ".my.cnf", "mirror.git/config", ".hg/hgrc", "service-account-prod.json", "KEY.PPK"],
)  # fmt: skip
def test_more_names_say_that_a_file_holds_secrets(name: str) -> None:
    """Copies that editors leave, state of tools, repositories without a working tree."""
    assert is_secret(Path(name))


@pytest.mark.parametrize("name", ["history.py", "main.tf", "state.md", "github.py", ".env.example", "old.py"])
def test_names_that_only_look_like_it_are_shown(name: str) -> None:
    """A project without its files is of no use."""
    assert not is_secret(Path(name))


async def test_a_huge_file_is_not_read_to_its_end_for_a_line_far_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing stops that reading, and a chat that ends would wait for it."""
    monkeypatch.setattr(tools, "_SEARCHED_BYTES", 1_000)
    (tmp_path / "big").write_text("0123456789\n" * 1_000)

    ok, content = await call(tmp_path, "read_file", path="big", start_line=900)
    assert (ok, "further down" in content) == (False, True)
    assert (await call(tmp_path, "read_file", path="big", start_line=50)).ok


def test_a_link_that_is_put_in_the_way_meanwhile_leads_nowhere(tmp_path: Path) -> None:
    """Between the look at a path and the opening of its file somebody may change a folder of it."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("not for you")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "folder").symlink_to(tmp_path / "outside")
    (tmp_path / "project" / "file").symlink_to(tmp_path / "outside" / "file")
    for parts in (("folder", "file"), ("file",)):
        with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
            tools._opened_below(tmp_path / "project", parts)


# Disks and streams


def entries(path: Path) -> list[str]:
    """The history, newest first."""
    return list(editing.PrivateHistory(path).load_history_strings())


def test_a_history_that_is_no_file_is_none(tmp_path: Path) -> None:
    """A pipe would be waited for, for ever."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        editing.PrivateHistory(tmp_path / name).append_string("asked")
        assert entries(tmp_path / name) == []


def test_of_a_huge_history_the_end_is_read_and_the_rest_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it came to be so long."""
    monkeypatch.setattr(editing, "_HISTORY_BYTES", 100)
    path = tmp_path / "history"
    path.write_text("".join(f'"entry {number}"\n' for number in range(1_000)))

    assert entries(path)[:2] == ["entry 999", "entry 998"]
    assert len(entries(path)) < 10
    editing.PrivateHistory(path).append_string("new")
    assert path.stat().st_size < 200
    assert entries(path)[:2] == ["new", "entry 999"]


def test_an_entry_that_a_full_disk_cut_off_takes_no_other_with_it(tmp_path: Path) -> None:
    """The next one begins a line of its own."""
    (tmp_path / "history").write_bytes(b'"one"\n"tw')
    editing.PrivateHistory(tmp_path / "history").append_string("three")
    assert entries(tmp_path / "history") == ["three", "one"]


def test_a_file_that_cannot_be_written_is_a_line_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk names no file of its own accord."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as raised:
        write_whole(tmp_path / "chat.yaml", b"x")
    assert told(raised.value) == (exits.FAILED, [f"{tmp_path / 'chat.yaml'}: No space left on device"])
    assert list(tmp_path.iterdir()) == []
    assert told(OSError(errno.EBADF, "a fault")) == (None, [])


def test_a_folder_whose_name_is_no_text_cannot_be_remembered_and_says_so(tmp_path: Path, settings: Settings) -> None:
    """The profile of such a project is not kept; all else works."""
    with pytest.raises(OSError, match="no UTF-8 text"):
        known_projects.choose(tmp_path / "bad\udcff", "rust", settings)


def test_an_option_that_is_no_text_is_no_fault() -> None:
    """Arguments may be any bytes."""
    with pytest.raises(sampling.OptionError, match="temperature"):
        sampling.from_words(["temperature=\udcff"])


async def test_a_renewed_sign_in_that_cannot_be_kept_lasts_for_the_command(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The old refresh token is used up: to lose the new one as well would end the sign-in in the middle of a chat."""
    tokens = Tokens(
        access_token="new",
        refresh_token="r2",
        user_id="ada",
        scopes=[],
        namespaces=[],
        expires_at=900.0,
        expires_in_s=900.0,
    )
    old = session.Session(user_id="ada", access_token="old", refresh_token="r1", renew_at=0.0)

    class Answering:
        def __init__(self, *given: Any, **named: Any) -> None: ...

        async def __aenter__(self) -> Answering:
            return self

        async def __aexit__(self, *error: object) -> None: ...

        async def request(self, subject: str, body: Any) -> Tokens:
            return tokens

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    session.session_path(settings).parent.mkdir(parents=True)
    monkeypatch.setattr(session, "load", lambda settings: old)
    monkeypatch.setattr(session, "Client", Answering)
    monkeypatch.setattr(session, "write_private", full)

    renewed = await session.renewed(settings)

    assert renewed is not None
    assert renewed.access_token == "new"
    assert "cannot be kept (No space left on device)" in capsys.readouterr().err


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_streams_that_were_closed_before_the_start_are_no_fault(closed: tuple[int, ...]) -> None:
    """As from a service that starts programs without them."""
    closing = "".join(f" {number}>&-" for number in closed)
    ended = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@"{closing}', "sh", sys.executable, "-m", "bus.cli.app", "chat", "--json"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
        cwd=Path(app.__file__).parents[2],
    )
    assert ended.returncode == exits.USAGE
    assert b"Traceback" not in ended.stderr
