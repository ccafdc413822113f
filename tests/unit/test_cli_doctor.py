"""What doctor finds, and config shows."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from bus.cli import app, clone, config, doctor
from bus.cli.doctor import Check


def test_only_required_things_make_the_report_advise_them_as_missing() -> None:
    """Missing and absent things get their advice under different headings."""
    lines = doctor.report(
        [Check("a", "ok", "1"), Check("b", "missing", "none", "get b"), Check("c", "absent", "", "get c")]
    )

    assert lines[lines.index("missing:") + 1] == "  b: get b"
    assert lines[lines.index("optional, or not running:") + 1] == "  c: get c"


def test_an_extra_is_required_when_the_procfile_starts_its_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names come from the project file, and need comes from the Procfile."""
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "olympus-bus"\ndependencies = ["msgspec>=0.19"]\n'
        "[project.optional-dependencies]\nmemory = [\"no-such-package-a~=1.0; python_version > '3'\"]\n"
        'vllm = ["no-such-package-b"]\ndev = ["olympus-bus[memory,vllm]", "pytest"]\n'
    )
    (tmp_path / "Procfile").write_text(
        "broker: python -m bus.cli.app broker\nmemory: python -m bus.cli.app worker memory\n"
    )
    monkeypatch.setattr(clone, "ROOT", tmp_path)

    found = {check.name: check for check in doctor.check_packages()}

    assert {name: check.state for name, check in found.items()} == {
        "packages": "ok",
        "extra memory": "missing",
        "extra vllm": "absent",
        "extra dev": "absent",
    }
    assert found["extra dev"].found == "not installed: no-such-package-a, no-such-package-b"


def test_a_home_that_cannot_be_written_is_missing(tmp_path: Path) -> None:
    """A file where the folder should be is told; a folder that does not exist yet is fine."""
    (tmp_path / "file").write_text("")

    assert doctor.check_home(tmp_path / "file").state == "missing"
    assert doctor.check_home(tmp_path / "new" / "deep").state != "missing"


def test_a_port_held_by_another_program_names_the_key_to_change() -> None:
    """Free, ours and foreign ports are told apart."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert doctor.is_held("127.0.0.1", port)

        check = doctor.check_port("publish_port", port, is_taken=True, is_ours=False)

    assert (check.state, check.advice) == ("missing", "stop that program, or change bus.publish_port")
    assert doctor.check_port("publish_port", port, is_taken=True, is_ours=True).found == "held by Olympus"
    assert doctor.check_port("publish_port", port, is_taken=False, is_ours=False).found == "free"


def test_doctor_reports_wrong_settings_instead_of_failing(capsys: pytest.CaptureFixture[str]) -> None:
    """The other checks are still made."""
    assert app.main(["doctor", "--json", "--set", "bus.request_port=x"]) == 1

    document = json.loads(capsys.readouterr().out)
    states = {check["name"]: check["state"] for check in document["checks"]}
    assert document["is_well"] is False
    assert states["settings"] == "missing"
    assert states["python"] == "ok"


def test_config_shows_values_with_where_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """File, environment, flag and default are named."""
    path = tmp_path / "olympus.yaml"
    path.write_text("bus:\n  request_port: 7100\n")
    monkeypatch.setenv("OLYMPUS_BUS_PUBLISH_PORT", "7101")

    assert app.main(["config", "show", "bus", "--json", "--config", str(path), "--set", "bus.timeout_s=5"]) == 0

    shown = json.loads(capsys.readouterr().out)
    assert shown["bus.request_port"] == {"value": 7100, "origin": f"{path} line 2"}
    assert shown["bus.publish_port"]["origin"] == "environment variable OLYMPUS_BUS_PUBLISH_PORT"
    assert shown["bus.timeout_s"] == {"value": 5.0, "origin": "flag --set bus.timeout_s"}
    assert shown["bus.host"]["origin"] == "default"
    assert all(name.startswith("bus.") for name in shown)


def test_secrets_are_not_shown() -> None:
    """A key that sounds like a secret hides its value; a count of tokens does not."""
    assert config.displayed("gateway.jwt_secret", "abc") == "(hidden)"
    assert config.displayed("models.max_tokens", 256) == 256
    assert config.displayed("gateway.jwt_secret", "") == ""
