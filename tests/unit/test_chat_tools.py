"""Tools of a chat that read the project: what they give, and that nothing outside of it or secret comes through."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from bus.cli.chat.tools import READ_BYTES, Result, Toolbox, is_secret
from bus.client import Client
from schemas.bodies.model import ToolCall


class Offline:
    """A client that nothing may ask."""

    async def request(self, subject: str, body: Any = None, **options: Any) -> Any:
        raise AssertionError(f"{subject} was asked")


def toolbox(root: Path | None) -> Toolbox:
    """The tools of a project without a bus."""
    return Toolbox(cast(Client, Offline()), root)


async def call(root: Path | None, name: str, **arguments: Any) -> Result:
    """What a tool says to a model."""
    text = msgspec.json.encode(arguments).decode()
    return await toolbox(root).call(ToolCall(id="1", name=name, arguments=text))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a neighbour that is none of its business."""
    root = tmp_path / "project"
    (root / "src").mkdir(parents=True)
    (root / "README").write_text("one\ntwo\nthree\n")
    (root / "src" / "main.py").write_text("print('hello')\n")
    (tmp_path / "outside.txt").write_text("not for you")
    return root


async def test_a_file_is_read_by_lines_and_says_which(project: Path) -> None:
    """The answer names its lines and where to read on."""
    assert await call(project, "read_file", path="README", lines=2) == Result(
        True, "[lines 1 to 2; read on with start_line=3]\none\ntwo\n"
    )
    assert await call(project, "read_file", path="README", start_line=3) == Result(
        True, "[lines 3 to 3, the last of the file]\nthree\n"
    )


async def test_lines_behind_the_end_are_refused_with_the_number_there_are(project: Path) -> None:
    """The model learns how long the file is."""
    ok, text = await call(project, "read_file", path="README", start_line=9)

    assert not ok
    assert "3 lines" in text


async def test_one_reading_is_bounded_whatever_the_file_holds(project: Path) -> None:
    """A line of megabytes and a file of many lines both give a part."""
    (project / "long.txt").write_text("é" * 1_000_000)
    (project / "many.txt").write_text("0123456789\n" * 100_000)

    for name in ("long.txt", "many.txt"):
        ok, text = await call(project, "read_file", path=name)
        assert ok
        assert len(text.encode()) < READ_BYTES * 2
        assert "read on with start_line" in text.partition("\n")[0]


@pytest.mark.parametrize(
    "path",
    [
        "../outside.txt",
        "src/../../outside.txt",
        "/etc/hostname",
        "..",
        "link.txt",
        "linked/outside.txt",
        "src/up/outside.txt",
    ],
)
async def test_no_path_leads_out_of_the_project(project: Path, path: str) -> None:
    """Dots, absolute paths and links are refused, and what is behind them stays unread."""
    (project / "link.txt").symlink_to("../outside.txt")
    (project / "linked").symlink_to(project.parent)
    (project / "src" / "up").symlink_to("../..")

    for name in ("read_file", "list_files"):
        ok, text = await call(project, name, path=path)
        assert not ok
        assert "not for you" not in text
        assert "outside of the project" in text


async def test_a_link_that_stays_inside_is_followed(project: Path) -> None:
    """Links within the project are ordinary."""
    (project / "main").symlink_to("src/main.py")

    assert (await call(project, "read_file", path="main")).content.endswith("print('hello')\n")


@pytest.mark.parametrize(
    "name",
    [
        ".env",
        ".env.production",
        "server.key",
        "cert.pem",
        "id_rsa",
        ".netrc",
        ".npmrc",
        "credentials.json",
        ".git/config",
        "secrets/a",
    ],
)
async def test_files_of_secrets_are_neither_shown_nor_listed(project: Path, name: str) -> None:
    """Whatever holds passwords or keys by its name is kept from the model."""
    (project / name).parent.mkdir(exist_ok=True)
    (project / name).write_text("password=swordfish")

    ok, text = await call(project, "read_file", path=name)
    listed = await call(project, "list_files", pattern="*")

    assert not ok
    assert "swordfish" not in text
    assert Path(name).name not in listed.content.split("\n")


async def test_a_link_with_a_harmless_name_shows_no_secret(project: Path) -> None:
    """It is the file's own name that counts."""
    (project / ".env").write_text("password=swordfish")
    (project / "notes.txt").symlink_to(".env")

    ok, text = await call(project, "read_file", path="notes.txt")

    assert not ok
    assert "swordfish" not in text


def test_an_example_of_a_file_of_secrets_is_none() -> None:
    """.env.example is there to be read; case does not matter for what is not."""
    assert not is_secret(Path(".env.example"))
    assert is_secret(Path("sub/Server.KEY"))
    assert not is_secret(Path("src/keyboard.py"))


async def test_what_is_no_text_file_is_refused(project: Path) -> None:
    """Folders, pipes, binaries, other encodings and absent files each get a reason."""
    os.mkfifo(project / "pipe")
    (project / "picture.bin").write_bytes(b"\x89PNG\0\0")
    (project / "latin.txt").write_bytes("schön".encode("latin-1"))

    for path, why in (
        ("src", "is a folder"),
        ("pipe", "no regular file"),
        ("picture.bin", "no text file"),
        ("latin.txt", "no UTF-8"),
        ("absent.txt", "there is no"),
        ("a\0b", "null bytes"),
    ):
        ok, text = await call(project, "read_file", path=path)
        assert not ok, path
        assert why in text


async def test_an_empty_file_says_so(project: Path) -> None:
    """Nothing is an answer too."""
    (project / "empty").touch()

    assert await call(project, "read_file", path="empty") == Result(True, "[the file is empty]")


async def test_files_are_found_by_name_at_any_depth(project: Path) -> None:
    """A pattern looks through folders, but not through those that others made."""
    (project / "node_modules").mkdir()
    (project / "node_modules" / "other.py").touch()

    assert (await call(project, "list_files", pattern="*.py")).content == "src/main.py"
    assert (await call(project, "list_files")).content == "README\nnode_modules/\nsrc/"
    assert (await call(project, "list_files", path="src")).content == "main.py"
    assert (await call(project, "list_files", pattern="*.rs")).content == "Nothing there."


async def test_a_listing_is_bounded(project: Path) -> None:
    """A folder of thousands gives the first names and says that there are more."""
    for number in range(400):
        (project / f"f{number:04}").touch()

    lines = (await call(project, "list_files", pattern="f*")).content.split("\n")

    assert lines[0] == "f0000"
    assert len(lines) == 301
    assert "there is more" in lines[-1]


@pytest.mark.parametrize(
    "arguments", ["", "{", "[]", '{"path": 7}', '{"path": "README", "mode": "w"}', '{"path": "x", "lines": 0}']
)
async def test_arguments_that_are_wrong_are_answered(project: Path, arguments: str) -> None:
    """Whatever a model writes gets words that it can act on."""
    ok, text = await toolbox(project).call(ToolCall(id="1", name="read_file", arguments=arguments))

    assert not ok
    assert text.startswith("read_file: ")


async def test_without_a_project_no_file_is_read(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of a project, in a home and at the root of everything there are no tools of files."""
    monkeypatch.setenv("HOME", str(project))

    for root in (None, project, Path("/")):
        assert await toolbox(root).tools(["read_file", "list_files"]) == []
        assert not (await call(root, "read_file", path="README")).ok


async def test_only_the_tools_asked_for_are_given(project: Path) -> None:
    """Each is described with its own arguments."""
    tools = await toolbox(project).tools(["list_files"])

    assert [tool.name for tool in tools] == ["list_files"]
    assert set(tools[0].parameters["properties"]) == {"path", "pattern"}
