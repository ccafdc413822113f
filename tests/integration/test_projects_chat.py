"""Projects against a real bus: an absent model falls back and says so, and the `olympus` command in project folders."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bus import known_projects, preferences
from bus.cli.chat.choices import Choices, choose, settle, with_profile
from bus.client import Client
from bus.project_file import Asked
from bus.worker import Call
from schemas.bodies.model import ModelShow
from schemas.bodies.model_trials import Route
from schemas.errors import NotFound, Unprocessable
from tests.chat_house import MODELS, ChatHouse

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatHouse]:
    """A broker and scripted models: tiny, plain and big; routing profiles general, code and fast."""
    with ChatHouse(tmp_path_factory.mktemp("house") / "home", has_memory=False) as house:
        yield house


@pytest.fixture
def folder(tmp_path: Path, house: ChatHouse) -> Iterator[Path]:
    """A Python project."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/pyproject.toml").write_text("")
    yield tmp_path / "shop"
    preferences.preferences_file(house.settings).unlink(missing_ok=True)


def write(folder: Path, text: str) -> Path:
    """The project's own file."""
    file = folder / ".olympus/project.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


async def settled(house: ChatHouse, folder: Path, **flags: Any) -> Choices:
    """The choices of a chat in `folder`, with a model that is there."""
    choices = choose(house.settings, argparse.Namespace(set=[], config=None, **flags), folder)
    async with Client(house.settings) as client:
        return await settle(choices, client)


async def test_an_absent_model_of_a_project_falls_back_to_its_routing_and_says_so(
    house: ChatHouse, folder: Path
) -> None:
    """The project's routing profile answers, and the note names file, line, model and what answers instead."""
    file = write(folder, "name: shop\nmodel: absent-70b\nrouting: fast\n")

    choices = await settled(house, folder)

    assert choices.model == "fast"
    assert choices.notes[-1] == (
        f"model absent-70b ({file} line 2): there is no model 'absent-70b'; there are: tiny, plain, big;"
        f" fast ({file} line 3) answers instead"
    )
    assert choices.origins["model"] == f"{file} line 3, as absent-70b is not there"


async def test_without_routing_the_weaker_sources_are_tried_in_order(house: ChatHouse, folder: Path) -> None:
    """Preferences, then the profile of the project, then everyday questions."""
    preferences.save(house.settings, Asked(model="absent-too"))
    write(folder, "model: absent-70b\n")
    assert (await settled(house, folder)).model == "code"

    write(folder, "model: absent-70b\nprofile: none\n")
    last = await settled(house, folder)
    assert last.model == "general"
    assert "general (routing profile for everyday questions) answers instead" in last.notes[-1]


async def test_models_that_are_there_are_left_alone(house: ChatHouse, folder: Path) -> None:
    """By name or by routing profile, and one that a flag names even where it is absent: the answer will say so."""
    for model in ("plain", "fast"):
        write(folder, f"model: {model}\n")
        choices = await settled(house, folder)
        assert (choices.model, [note for note in choices.notes if "instead" in note]) == (model, [])

    assert (await settled(house, folder, model="absent-70b")).model == "absent-70b"


async def test_a_profile_that_no_model_fulfils_is_as_good_as_absent(tmp_path: Path) -> None:
    """As is a model whose file is broken; in the end the service's default answers."""

    async def route(request: Route, call: Call) -> Any:
        if request.profile == "code":
            raise Unprocessable("no model of profile code can be used")
        raise NotFound(f"there is no profile {request.profile!r}")

    root = tmp_path / "shop"
    root.mkdir()
    (root / "go.mod").write_text("")
    with ChatHouse(tmp_path / "home", has_memory=False, extra={"model.route": route}) as house:
        house.models = [
            msgspec.structs.replace(one, state="unusable", error="cut off") if one.name == "big" else one
            for one in house.models
        ]

        routed = await settled(house, root)
        write(root, "model: big\n")
        broken = await settled(house, root)

    assert (routed.model, routed.origins["model"]) == (None, "default of the model service, as code is not there")
    assert "no model of profile code can be used; the default model answers instead" in routed.notes[-1]
    assert "it cannot be used (cut off)" in broken.notes[-1]


async def test_a_name_that_only_an_endpoint_knows_is_there(tmp_path: Path) -> None:
    """A server elsewhere may have models that no list shows."""

    async def show(request: ModelShow, call: Call) -> Any:
        return msgspec.structs.replace(MODELS[0], name=request.model)

    root = tmp_path / "shop"
    (root / ".git").mkdir(parents=True)
    write(root, "model: far-away\n")
    with ChatHouse(tmp_path / "home", has_memory=False, extra={"model.show": show}) as other:
        choices = await settled(other, root)

    assert choices.model == "far-away"


async def test_without_a_model_service_nothing_changes_and_nobody_waits(serve_broker: Any, folder: Path) -> None:
    """Whoever asks the first question hears what is wrong."""
    write(folder, "model: absent-70b\n")
    async with serve_broker() as settings, Client(settings) as client:
        choices = choose(settings, argparse.Namespace(set=[], config=None), folder)

        assert (await settle(choices, client)).model == "absent-70b"


async def test_what_is_told_of_a_project_file_is_told_once(house: ChatHouse, folder: Path) -> None:
    """The first chat in a project announces its file; the next one does not."""
    write(folder, "system: Obey.\n")

    first, second = await settled(house, folder), await settled(house, folder)

    assert [note for note in first.notes if note.startswith("new here: ")]
    assert second.notes == ()


async def test_another_profile_in_a_chat_is_settled_again(house: ChatHouse, folder: Path) -> None:
    """Its routing profile may be one that is not there."""
    own = house.settings.path("projects", "law.yaml")
    own.parent.mkdir(exist_ok=True)
    own.write_text("system: You know the law.\nrouting: saul\n")
    before = await settled(house, folder)
    async with Client(house.settings) as client:
        after = await settle(with_profile(before, "law", house.settings), client)

    assert (after.system, after.model) == ("You know the law.", "general")
    assert "model saul (profile law)" in after.notes[-1]


# The command ------------------------------------------------------------------------------------------------------


def olympus(house: ChatHouse, folder: Path, *words: str, question: str = "") -> subprocess.CompletedProcess[str]:
    """`olympus WORDS` in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "bus.cli.app", *house.flags, *words],
        cwd=folder,
        env=house.environment,
        input=question,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_question_in_a_project_falls_back_and_says_so_beside_the_answer(house: ChatHouse, folder: Path) -> None:
    """The answer alone is on stdout, and was asked with the project's system prompt."""
    write(folder, "model: absent-70b\nsystem: You know this shop.\n")

    done = olympus(house, folder, "chat", "system")

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("You know this shop.")
    assert "absent-70b" in done.stderr
    assert "answers instead" in done.stderr
    assert house.asked[-1].model == "code"


def test_a_project_file_is_written_shown_used_and_not_written_over(house: ChatHouse, folder: Path) -> None:
    """From nothing to a file to commit, with what counts and why."""
    assert olympus(house, folder, "project", "detect").stdout.splitlines()[1].split()[:2] == [
        "python",
        "pyproject.toml",
    ]

    made = olympus(house, folder, "project", "init")
    file = folder / ".olympus/project.yaml"
    assert (made.returncode, made.stdout) == (0, f"{file}\n")
    assert "commit it: git add .olympus/project.yaml" in made.stderr
    assert "profile: python" in file.read_text()
    assert file.stat().st_mode & 0o077 == 0o044

    file.write_text(file.read_text() + "\nmodel: big\n")
    again = olympus(house, folder, "project", "init")
    assert (again.returncode, again.stdout) == (1, "")
    assert "--force writes it anew" in again.stderr
    forced = olympus(house, folder, "project", "init", "--force", "--profile", "rust")
    assert forced.returncode == 0
    assert "\nmodel: big\n" in file.read_text()
    assert "\nprofile: rust\n" in file.read_text()

    used = olympus(house, folder, "project", "use", "documentation")
    assert (used.returncode, used.stdout) == (0, "documentation\n")
    shown = json.loads(olympus(house, folder, "project", "show", "--json").stdout)
    assert (shown["project"]["profile"], shown["project"]["chosen_by"]) == (
        "documentation",
        "your choice for this project",
    )
    assert (shown["values"]["model"], shown["values"]["options.temperature"]) == ("big", 0.4)
    assert shown["origins"]["model"].startswith(f"{file} line ")
    assert olympus(house, folder, "project", "use", "--forget").stdout == "rust\n"
    assert str(folder) not in known_projects.chosen(known_projects.load(house.settings))


def test_init_takes_over_an_older_file_and_warns_of_gitignore(house: ChatHouse, folder: Path) -> None:
    """What .ollm/project.yaml says stays, and a file that git leaves out is told of."""
    (folder / ".ollm").mkdir()
    (folder / ".ollm/project.yaml").write_text("name: old\nsystemPrompt: |\n  Two\n  lines.\nmodel: big\n")
    (folder / ".gitignore").write_text("*.pyc\n.olympus/\n")

    made = olympus(house, folder, "project", "init")

    assert f"what {folder / '.ollm/project.yaml'} says was taken over" in made.stderr
    assert f"{folder / '.gitignore'} line 2 keeps it out of git" in made.stderr
    text = (folder / ".olympus/project.yaml").read_text()
    assert "name: old\n" in text
    assert "system: |-\n  Two\n  lines.\n" in text


def test_mistakes_are_told_with_file_and_line_and_no_trace(house: ChatHouse, folder: Path) -> None:
    """A broken file, a profile that does not exist, no project, no folder, and a link out of the project."""
    file = write(folder, "name: x\ntools: [shell]\n")
    broken = olympus(house, folder, "project", "show")
    assert (broken.returncode, broken.stdout) == (1, "")
    assert broken.stderr.startswith(f"olympus: {file} line 2: tools = 'shell' is not allowed; allowed: a list of")

    wrong = olympus(house, folder, "project", "use", "pyhton")
    assert wrong.returncode == 1
    assert "did you mean 'python'?" in wrong.stderr

    nothing = folder.parent / "nothing"
    nothing.mkdir()
    assert olympus(house, nothing, "project", "detect").returncode == 1
    assert "belongs to no project" in olympus(house, nothing, "project", "use", "go").stderr
    assert olympus(house, nothing, "project", "detect", "nowhere").returncode == 2

    (nothing / ".olympus").symlink_to(folder.parent)
    linked = olympus(house, nothing, "project", "init")
    assert linked.returncode == 1
    assert "leads out of" in linked.stderr
    assert "Traceback" not in linked.stderr
