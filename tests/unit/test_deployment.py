"""Images, compose files and units of systemd: linted, and in step with the settings and the program they start."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from bus.cli import app, exits, up
from bus.readiness import say_ready
from bus.settings import environment_name, every_key, load_settings

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ("Dockerfile", "Dockerfile.gpu")
UNITS = sorted((ROOT / "config" / "systemd").glob("*/*"))

every_image = pytest.mark.parametrize("name", IMAGES)
every_unit = pytest.mark.parametrize("unit", UNITS, ids=lambda path: f"{path.parent.name}/{path.name}")


def instructions(name: str) -> list[tuple[str, str]]:
    """Every instruction of a Dockerfile with its arguments; lines that go on are joined."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines() if line.strip()]


def arguments(name: str, instruction: str) -> list[str]:
    """The arguments of all instructions of a kind."""
    return [text for word, text in instructions(name) if word == instruction]


def tool(name: str) -> str:
    """A program of this environment or of the machine."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


# Images


@every_image
def test_image_has_no_fault_that_a_linter_knows(name: str) -> None:
    """hadolint, which reads the shell in it too."""
    done = subprocess.run([tool("hadolint"), ROOT / name], capture_output=True, text=True, timeout=30, check=False)

    assert (done.returncode, done.stdout) == (0, "")


@every_image
def test_image_runs_as_nobody_special_and_keeps_state_in_its_volume(name: str) -> None:
    """A fixed user without rights; the home is below the volume, so that a restore can rename it."""
    assert arguments(name, "USER") == ["10001:10001"]
    (volume,) = json.loads(arguments(name, "VOLUME")[0])
    environment = " ".join(arguments(name, "ENV"))
    home = re.search(r"OLYMPUS_HOME=(\S+)", environment)
    assert home is not None
    assert Path(volume) in Path(home[1]).parents
    assert not re.search(r"\b\w*(TOKEN|SECRET|PASSWORD|_KEY)\w*=", environment + " ".join(arguments(name, "ARG")))


@every_image
def test_image_installs_what_a_clone_installs(name: str) -> None:
    """The extras of scripts/start, and pins that constraints.txt holds."""
    wanted = re.search(r"^ensure_installed (.+)$", (ROOT / "scripts" / "start").read_text(), re.MULTILINE)
    assert wanted is not None
    assert f"EXTRAS={wanted[1].replace(' ', ',')}" in arguments(name, "ARG")
    pins = (ROOT / "constraints.txt").read_text()
    patterns = re.findall(r"grep '(.+?)' constraints", " ".join(arguments(name, "RUN")))
    assert patterns
    assert [pattern for pattern in patterns if not re.search(pattern, pins, re.MULTILINE)] == []


@every_image
def test_image_starts_what_is_in_it(name: str) -> None:
    """Entry point and health check name programs that were installed, with arguments that they take."""
    (entry,) = (json.loads(text) for text in arguments(name, "ENTRYPOINT"))
    (command,) = (json.loads(text) for text in arguments(name, "CMD"))
    assert entry == ["tini", "--", "olympus"]
    assert re.search(r"install .*\btini\b", arguments(name, "RUN")[-1])
    assert "olympus" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    health = re.search(r"CMD (\[.*\])", arguments(name, "HEALTHCHECK")[0])
    assert health is not None
    for words in ([*entry[2:], *command], json.loads(health[1])):
        found = app.find(words[1])
        assert found is not None
        app.command_parser(found).parse_args(words[2:])


def is_ignored(path: str) -> bool:
    """As Docker reads .dockerignore: without exceptions, patterns from the root, ** for any folders."""
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        parts = path.split("/")
        heads = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        names = [line.removeprefix("**/")] if line.startswith("**/") else []
        if any(fnmatch.fnmatch(head, line) for head in heads) or any(
            fnmatch.fnmatch(part, name) for part in parts for name in names
        ):
            return True
    return False


def test_what_a_running_house_needs_is_in_the_image_and_secrets_are_not() -> None:
    """Of the files that git knows."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    tracked = [name for name in listed.split("\0") if name]
    taken = {name for name in tracked if not is_ignored(name)}

    needed = (
        "Procfile",
        "Procfile.mainpc",
        "Procfile.pc2",
        "pyproject.toml",
        "constraints.txt",
        "hatch_build.py",
        "LICENSE",
    )
    assert [name for name in needed if name not in taken] == []
    packages = ("broker/", "bus/", "config/", "schemas/", "workers/", "scripts/")
    assert [name for name in tracked if name.startswith(packages) and name not in taken] == []
    for name in (".env", ".git/config", ".venv/bin/python", "schemas/_scan.cpython-311.so", "keys/a.pem", "tests/x.py"):
        assert is_ignored(name), name


# Compose


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    """A compose file with its defaults filled in."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / name).read_text())
    tree: dict[str, Any] = yaml.safe_load(text)
    return tree


SERVICES = compose()["services"]
every_service = pytest.mark.parametrize("name", SERVICES)


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_file_follows_the_specification(name: str) -> None:
    """Every key, every duration, every size, and networks and volumes that are declared."""
    compose_spec = pytest.importorskip("compose_spec")
    tree = compose(name)

    parsed = compose_spec.PyCompose.from_yaml(yaml.safe_dump(tree))

    parsed.validate()
    parsed.validate_networks()
    assert set(parsed.service_names()) == set(tree["services"])


def test_docker_itself_takes_the_compose_files() -> None:
    """Where its client is installed with compose; it needs no engine for that."""
    docker = shutil.which("docker")
    has_compose = (
        docker and not subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode
    )
    for files in ([], ["-f", "compose.yaml", "-f", "compose.gpu.yaml"]) if has_compose else ():
        done = subprocess.run(
            [str(docker), "compose", *files, "--profile", "*", "config", "-q"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_only_the_house_starts_unasked() -> None:
    """Everything else belongs to a profile."""
    assert [name for name, service in SERVICES.items() if "profiles" not in service] == ["house"]
    profiles = {profile for service in SERVICES.values() for profile in service.get("profiles", ())}
    assert profiles == {"mainpc", "pc2", "servers", "monitoring"}


@every_service
def test_service_may_do_no_more_than_it_needs(name: str) -> None:
    """No capabilities, no way to gain any, limits on memory, and nothing published beyond loopback."""
    service = SERVICES[name]

    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["restart"] == "unless-stopped"
    assert "privileged" not in service
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert service.get("read_only") or name == "qdrant", "qdrant writes beside its storage"
    # A tag or a build, never whatever is newest.
    assert "build" in service or re.fullmatch(r"[a-z/]+:v?\d[\w.-]*", service["image"])


@every_service
def test_service_mounts_what_is_there(name: str) -> None:
    """Files of the project, read-only, and volumes that are declared."""
    declared = compose()["volumes"]
    for mount in SERVICES[name].get("volumes", ()):
        source, _, options = mount.partition(":")
        if source.startswith("."):
            assert (ROOT / source).exists(), source
            assert options.endswith(":ro")
        else:
            assert source in declared


def test_settings_given_by_compose_are_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their names exist, what is not given counts as unset, and a house starts with the rest."""
    for name in [name for name in os.environ if name.startswith("OLYMPUS_")]:
        monkeypatch.delenv(name)
    known = {environment_name(key.name) for key in every_key()} | {"OLYMPUS_CONFIG"}
    for service in ("house", "mainpc", "pc2"):
        given = SERVICES[service]["environment"]
        assert {name for name in given if name.startswith("OLYMPUS_")} <= known
        with monkeypatch.context() as patched:
            for name, value in given.items():
                if name != "OLYMPUS_CONFIG" and value is not None:
                    patched.setenv(name, value)
            mounts = [mount for mount in SERVICES[service]["volumes"] if "olympus.yaml" in mount]
            load_settings(ROOT / mounts[0].partition(":")[0] if mounts else None)


def test_variables_of_the_compose_files_are_none_of_our_settings() -> None:
    """A file .env with them may also be read into the environment of a house without containers."""
    named = {
        name
        for file in ("compose.yaml", "compose.gpu.yaml")
        for name in re.findall(r"\$\{(\w+)", (ROOT / file).read_text())
    }

    assert {name for name in named if name.startswith("OLYMPUS_")} == set()


# systemd


def value_of(unit: Path, key: str) -> str:
    """The last value of a key of a unit."""
    return re.findall(rf"^{key}=(.*)$", unit.read_text(), re.MULTILINE)[-1]


@pytest.mark.parametrize("scope", ["system", "user"])
def test_systemd_takes_its_units(scope: str, tmp_path: Path) -> None:
    """`systemd-analyze verify`, with the programs and pages where they are here."""
    program = tmp_path / "olympus"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    units = []
    for unit in (ROOT / "config" / "systemd" / scope).iterdir():
        text = re.sub(r"^(ExecStart=)\S+", rf"\1{program}", unit.read_text(), flags=re.MULTILINE)
        (tmp_path / unit.name).write_text(text)
        units.append(tmp_path / unit.name)

    done = subprocess.run(
        [tool("systemd-analyze"), f"--{scope}", "verify", "--man=no", *units],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["olympus.service", "olympus-backup.service"])
def test_system_service_is_hardened(name: str) -> None:
    """systemd's own measure of what it could do harm with, 0 to 10; most services have above 9."""
    unit = ROOT / "config" / "systemd" / "system" / name
    done = subprocess.run(
        [tool("systemd-analyze"), "security", "--offline=true", "--threshold=25", "--no-pager", unit],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-300:]


@every_unit
def test_unit_calls_the_command_as_it_is(unit: Path) -> None:
    """Words that its parser takes."""
    for line in re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.MULTILINE):
        program, name, *words = shlex.split(line)
        assert program.endswith("/.venv/bin/olympus")
        command = app.find(name)
        assert command is not None
        app.command_parser(command).parse_args(words)


@pytest.mark.parametrize("scope", ["system", "user"])
def test_unit_leaves_the_house_the_time_it_takes_to_stop(scope: str) -> None:
    """And does not start again what only a person can mend."""
    unit = ROOT / "config" / "systemd" / scope / "olympus.service"

    longest_s = up._HONCHO_START_S + up._HONCHO_STOP_S + load_settings().supervisor.stop_s
    assert float(value_of(unit, "TimeoutStopSec")) > longest_s
    assert value_of(unit, "RestartPreventExitStatus") == str(exits.CONFIGURATION)
    assert value_of(unit, "KillMode") == "mixed"
    grace = re.fullmatch(r"(\d+)s", SERVICES["house"]["stop_grace_period"])
    assert grace is not None
    assert float(grace[1]) > longest_s


@pytest.mark.parametrize("is_abstract", [False, True])
def test_systemd_hears_that_everything_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_abstract: bool
) -> None:
    """Through the socket that it names, in a file or without one."""
    name = f"@olympus-test-{os.getpid()}" if is_abstract else str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name.replace("@", "\0", 1))
        listening.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        say_ready()
        assert listening.recv(200).startswith(b"READY=1")


@pytest.mark.parametrize("name", ["", "relative", "/nobody/listens"])
def test_readiness_without_a_listener_is_no_fault(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Started by hand, or the other side is gone."""
    monkeypatch.setenv("NOTIFY_SOCKET", name)

    say_ready()
