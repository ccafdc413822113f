"""The project as it is installed: its names, its pins, its import contract, and what its files may not say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"broker", "bus", "schemas", "workers"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NAME = PROJECT["project"]["name"]


def constraints() -> list[Requirement]:
    """The lines of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def required_here() -> Iterator[Requirement]:
    """Every requirement of every extra that is installed, and what those require in turn."""
    project = PROJECT["project"]
    waiting = [Requirement(text) for extra in project["optional-dependencies"].values() for text in extra]
    waiting += [Requirement(text) for text in project["dependencies"]]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        for extra in {"", *requirement.extras}:
            key = (canonicalize_name(requirement.name), extra)
            if key in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
                continue
            seen.add(key)
            try:
                below = metadata.requires(requirement.name) or []
            except metadata.PackageNotFoundError:
                continue
            yield requirement
            for text in below:
                child = Requirement(text)
                if child.marker is None or child.marker.evaluate({"extra": extra}):
                    child.marker = None
                    waiting.append(child)


def files_of_the_project() -> Iterator[Path]:
    """Every text file that a clone holds or will hold."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and b"\0" not in path.read_bytes()[:4096]:
            yield path


def test_no_other_distribution_owns_our_names() -> None:
    """`broker`, `workers` and `schemas` exist elsewhere too; whoever comes first on the path would win."""
    owners = metadata.packages_distributions()

    strangers = {name: set(owners.get(name, [])) - {NAME} for name in PACKAGES}

    assert {name: sorted(who) for name, who in strangers.items() if who} == {}


def test_packages_of_the_wheel_are_the_four_folders_and_the_shipped_configuration() -> None:
    """Build and import contract list what is there; config/ holds data that services read, and no code."""
    assert set(PROJECT["tool"]["hatch"]["build"]["packages"]) == PACKAGES | {"config"}
    assert set(PROJECT["tool"]["importlinter"]["root_packages"]) == PACKAGES
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == PACKAGES


def test_constraints_are_exact_versions_without_addresses() -> None:
    """One `==` a line, and nothing that names a place."""
    wrong = [str(pin) for pin in constraints() if pin.url or not re.fullmatch(r"==[\w.!]+", str(pin.specifier))]

    assert wrong == []
    assert "://" not in (ROOT / "constraints.txt").read_text()


def test_constraints_pin_torch_for_every_extra() -> None:
    """Everything else was chosen for this torch."""
    assert [str(pin) for pin in constraints() if pin.name == "torch"] == ["torch==2.13.0"]
    brought = {
        text for extra in PROJECT["project"]["optional-dependencies"].values() for text in extra if "torch" in text
    }
    assert brought == {"torch==2.13.0"}


def test_constraints_pin_what_pyproject_asks_for() -> None:
    """Every direct requirement has a pin that satisfies it, so that `-c constraints.txt` can always be met."""
    pins = {canonicalize_name(pin.name): pin for pin in constraints()}
    project = PROJECT["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]

    missing = []
    for requirement in map(Requirement, texts):
        pin = pins.get(canonicalize_name(requirement.name))
        version = str(pin.specifier).removeprefix("==") if pin else ""
        if not requirement.specifier.contains(version or "0"):
            missing.append(f"{requirement}: pinned {version or 'nowhere'}")

    assert missing == []


def test_everything_installed_for_us_is_pinned_and_has_the_pinned_version() -> None:
    """Two machines that install the same clone get the same packages."""
    pins: dict[str, set[str]] = {}
    for pin in constraints():
        if pin.marker is None or pin.marker.evaluate():
            pins.setdefault(canonicalize_name(pin.name), set()).add(str(pin.specifier).removeprefix("=="))

    differing = {}
    for requirement in required_here():
        name = canonicalize_name(requirement.name)
        # A local label (2.13.0+cpu) tells how a version was built.
        installed = metadata.version(name).partition("+")[0]
        if installed not in pins.get(name, set()):
            differing[name] = f"installed {installed}, pinned {', '.join(pins.get(name, ())) or 'nowhere'}"

    assert differing == {}


def test_import_contract_holds() -> None:
    """schemas <- bus <- broker and workers; siblings and the command are imported by nobody."""
    linter = Path(sys.executable).parent / "lint-imports"
    result = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stdout + result.stderr


def test_no_file_names_a_package_registry() -> None:
    """Where packages come from is the machine's business."""
    hosts = [
        ".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("debian", "org"))
    ]

    found = [
        f"{path.relative_to(ROOT)}: {host}"
        for path in files_of_the_project()
        for host in hosts
        if host in path.read_text(errors="replace")
    ]

    assert found == []


@pytest.mark.parametrize("script", ["scripts/start", "scripts/test", ".ci/run"])
def test_scripts_are_executable_and_parse(script: str) -> None:
    """The two commands of the README run as they are."""
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", ROOT / script], check=True)


def test_every_line_of_the_procfile_is_replaced_by_its_supervisor() -> None:
    """Without `exec` a shell would stand between honcho and the supervisor, and swallow the signals."""
    lines = [line for line in (ROOT / "Procfile").read_text().splitlines() if line and not line.startswith("#")]

    assert lines
    assert [line for line in lines if not re.fullmatch(r"\w+: exec olympus (broker|worker \w+)", line)] == []
