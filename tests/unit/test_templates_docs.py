"""docs/templates.md does what it shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from bus import template_file, template_text, templates, yaml_lines
from bus.cli import app

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "templates.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```yaml\n# ([\w-]+)\.yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))
SHOWN = re.findall(r"^```sh\nolympus ([^\n]*--print)\n```\n\n```text\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("command", "printed"), SHOWN)
def test_every_prompt_shown_is_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, printed: str
) -> None:
    """With the files of the page as one's own templates."""
    folder = tmp_path / "home" / "templates"
    folder.mkdir(parents=True)
    for name, text in FILES.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setenv("OLYMPUS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    assert app.main(shlex.split(command)) == 0
    assert capsys.readouterr().out == printed


def test_every_file_shown_is_used_or_taken_in() -> None:
    """No example stands there unchecked."""
    used = {shlex.split(command)[2] for command, _ in SHOWN}

    assert len(SHOWN) >= 4
    assert set(FILES) == used | {"no-advertising"}


def test_every_key_and_every_shipped_template_is_on_the_page() -> None:
    """The tables are those of the code."""
    rows = set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE))
    shipped = {path.stem for path in templates.SHIPPED.glob("*.yaml")}

    assert rows == {*template_file._KEYS, *template_file._OF_VARIABLES}
    assert {name for name in shipped if f"`{name}`" not in TEXT} == set()


def test_the_bounds_are_those_of_the_code() -> None:
    """In the order of the table."""
    numbers = [
        int(value.replace(",", "")) for value in re.findall(r"^\| [a-z].* \| ([\d,]+)[^|]*\|$", TEXT, re.MULTILINE)
    ]

    assert numbers == [
        template_file.FILE_MAX,
        templates._FILES_MAX,
        templates._READ_MAX,
        yaml_lines._VALUES_MAX,
        templates._EXTENDS_MAX,
        templates._INCLUDED_MAX,
        templates.VARIABLES_MAX,
        template_text._DEPTH_MAX,
        templates.RENDERED_MAX,
    ]
