"""Settings: order of their sources, what is refused and in which words, and the configuration file beside them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bus import settings as module
from bus.settings import Settings, SettingsError, every_key, load_settings, parse_overrides, settings_of_process

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "config" / "olympus.yaml"


@pytest.fixture(autouse=True)
def no_settings_in_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the machine's environment nor its home folder reaches these tests."""
    for name in list(module.os.environ):
        if name.startswith(("OLYMPUS_", "OLLM_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a test writes its configuration."""
    return tmp_path / "some.yaml"


def refused(overrides: dict[str, object] | None = None, path: Path | None = None) -> str:
    """The message of the SettingsError that loading raises."""
    with pytest.raises(SettingsError) as caught:
        load_settings(path, overrides)
    return str(caught.value)


# Order ----------------------------------------------------------------------------------------------------------


def test_defaults_hold_when_nothing_is_set() -> None:
    """Without file, environment and flags the settings are the declared defaults."""
    assert load_settings() == Settings()


def test_environment_beats_file_and_flag_beats_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each source wins over the one before it, key by key."""
    file.write_text("bus:\n  request_port: 7100\n  publish_port: 7101\n  subscribe_port: 7102\n")
    monkeypatch.setenv("OLYMPUS_BUS_PUBLISH_PORT", "7201")
    monkeypatch.setenv("OLYMPUS_BUS_SUBSCRIBE_PORT", "7202")

    bus = load_settings(file, {"bus.subscribe_port": "7302"}).bus

    assert (bus.request_port, bus.publish_port, bus.subscribe_port) == (7100, 7201, 7302)


def test_file_is_looked_for_at_flag_then_variable_then_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An explicit path wins over OLYMPUS_CONFIG, which wins over OLYMPUS_HOME/olympus.yaml."""
    home = tmp_path / "home"
    home.mkdir()
    for port, path in (
        (7101, home / "olympus.yaml"),
        (7102, tmp_path / "variable.yaml"),
        (7103, tmp_path / "flag.yaml"),
    ):
        path.write_text(f"bus: {{request_port: {port}}}\n")

    monkeypatch.setenv("OLYMPUS_HOME", str(home))
    assert load_settings().bus.request_port == 7101
    monkeypatch.setenv("OLYMPUS_CONFIG", str(tmp_path / "variable.yaml"))
    assert load_settings().bus.request_port == 7102
    assert load_settings(tmp_path / "flag.yaml").bus.request_port == 7103


def test_file_below_the_default_home_is_read(tmp_path: Path) -> None:
    """~/.olympus/olympus.yaml needs no variable to be found."""
    (tmp_path / ".olympus").mkdir()
    (tmp_path / ".olympus" / "olympus.yaml").write_text("log: {format: json}\n")

    assert load_settings().log.format == "json"


def test_paths_below_home_are_absolute(tmp_path: Path) -> None:
    """`path` joins below home; an absolute part stands for itself."""
    settings = load_settings(None, {"home": str(tmp_path / "state")})

    assert settings.path("memory/memory.db") == tmp_path / "state" / "memory" / "memory.db"
    assert settings.path("/elsewhere/m.db") == Path("/elsewhere/m.db")
    assert Settings().home_path == tmp_path / ".olympus"


def test_empty_file_and_empty_section_keep_the_defaults(file: Path) -> None:
    """A file with everything commented out is a good file."""
    file.write_text("# nothing\nbus:\n")

    assert load_settings(file) == Settings()


@pytest.mark.parametrize(
    ("text", "roots"),
    [
        ('["a", "b c"]', ("a", "b c")),
        ("a, b", ("a", "b")),
        ("a", ("a",)),
        ("[]", ()),
    ],
)
def test_lists_are_read_as_json_or_with_commas(
    text: str, roots: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment and flags have only text, which holds lists in two ways."""
    monkeypatch.setenv("OLYMPUS_MODELS_ROOTS", text)

    assert load_settings().models.roots == roots


def test_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable emptied by a wrapper script does not become a value."""
    monkeypatch.setenv("OLYMPUS_BUS_REQUEST_PORT", "")
    monkeypatch.setenv("OLYMPUS_CONFIG", "")

    assert load_settings() == Settings()


def test_variables_of_other_things_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only variables of known sections are claimed."""
    monkeypatch.setenv("OLYMPUS_TEST_NO_SKIP", "1")
    monkeypatch.setenv("OLYMPUSES", "12")

    assert load_settings() == Settings()


def test_variables_shared_with_other_programs_stand_between_file_and_our_own(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OLLM_MODEL and its like beat the file, and are beaten by OLYMPUS_... and by flags; empty ones are unset."""
    file.write_text("models: {default: from-file, max_tokens: 1, context_tokens: 64}\n")
    monkeypatch.setenv("OLLM_MODEL", "shared")
    monkeypatch.setenv("OLLM_MAX_TOKENS", "2")
    monkeypatch.setenv("OLLM_TEMPERATURE", "0.5")
    monkeypatch.setenv("OLLM_CONTEXT_SIZE", "")
    monkeypatch.setenv("OLLM_API_KEY", "of another program")

    models = load_settings(file).models
    assert (models.default, models.max_tokens, models.temperature, models.context_tokens) == ("shared", 2, 0.5, 64)
    monkeypatch.setenv("OLYMPUS_MODELS_DEFAULT", "ours")
    models = load_settings(file, {"models.max_tokens": "3"}).models
    assert (models.default, models.max_tokens) == ("ours", 3)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("OLLM_TEMPERATURE", "hot", "models.temperature = 'hot' is not allowed; allowed: -1 to 10"),
        ("OLLM_MAX_TOKENS", "0", "models.max_tokens = '0' is not allowed; allowed: 1 to 1000000 (whole number)"),
        ("OLLM_CONTEXT_SIZE", "-1", "models.context_tokens = '-1' is not allowed; allowed: 0 to 10000000"),
        ("OLLM_PROVIDER", "olama", "models.provider = 'olama' is not allowed; allowed: auto, llama.cpp"),
        ("OLLM_HOST", "localhost:11434", "models.host is not the address of a server; allowed: http://HOST"),
        ("OLLM_HOST", "http://me:secret@localhost/", "models.host is not the address of a server"),
        ("OLLM_HOST", "http://localhost:99999", "models.host is not the address of a server"),
    ],
)
def test_wrong_value_of_a_shared_variable_names_it(
    variable: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says which variable is wrong and what would be right, and never shows what may be a password."""
    monkeypatch.setenv(variable, value)

    message = refused()

    assert message.startswith(f"environment variable {variable}: ") and expected in message
    assert "secret" not in message


def test_host_needs_a_provider_that_can_be_a_server() -> None:
    """transformers runs in a process of ours and has no address."""
    message = refused({"models.provider": "transformers", "models.host": "http://127.0.0.1:1"})

    assert "models.provider = 'transformers' is not allowed" in message
    assert load_settings(overrides={"models.provider": "vllm", "models.host": "http://127.0.0.1:1"}).models.host


def test_child_environment_carries_flags_to_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was given as flags reads the same from the environment made of it, from any folder."""
    (tmp_path / "c.yaml").write_text("log: {format: json}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OLYMPUS_HOME", "state")

    environment = module.child_environment("c.yaml", {"bus.request_port": "7100", "models.roots": "a,b"})
    monkeypatch.chdir("/")
    for name, value in environment.items():
        if name.startswith("OLYMPUS_"):
            monkeypatch.setenv(name, value)
    settings = load_settings()

    assert settings.log.format == "json"
    assert settings.bus.request_port == 7100
    assert settings.models.roots == ("a", "b")
    assert settings.home_path == tmp_path / "state"


# What is refused ------------------------------------------------------------------------------------------------


def test_value_out_of_range_names_file_line_key_value_and_range(file: Path) -> None:
    """A person can go straight to the line and knows what may stand there."""
    file.write_text("bus:\n  # a comment\n  request_port: 70000\n")

    message = refused(path=file)

    assert f"{file} line 3" in message
    assert "bus.request_port = 70000" in message
    assert "0 to 65535" in message


def test_value_out_of_range_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment variable is named as it is written."""
    monkeypatch.setenv("OLYMPUS_BUS_TIMEOUT_S", "never")

    message = refused()

    assert "environment variable OLYMPUS_BUS_TIMEOUT_S" in message
    assert "'never'" in message
    assert "above 0 to 86400" in message


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("bus.request_port", "x", "0 to 65535 (whole number)"),
        ("bus.insecure", "maybe", "true, false"),
        ("log.format", "xml", "text, json"),
        ("models.roots", "[1, 2]", "a list of texts"),
        ("models.roots", "[1", "a list of texts"),
        ("models.default", "", "text, not empty"),
        ("models.gpu_layers", "-2", "-1 to 10000 (whole number)"),
        ("supervisor.backoff_s", "0", "0.01 to 60"),
    ],
)
def test_flag_of_wrong_value_is_refused_with_the_range(key: str, value: str, allowed: str) -> None:
    """Every kind of value says what is allowed instead."""
    message = refused({key: value})

    assert f"flag --set {key}" in message
    assert allowed in message


def test_unknown_keys_suggest_the_nearest(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slip of the pen is named wherever it was made."""
    file.write_text("bus:\n  reqest_port: 7100\n")
    assert "line 2: unknown setting 'bus.reqest_port'; did you mean bus.request_port?" in refused(path=file)
    file.write_text("memori: {}\n")
    assert "unknown setting 'memori'" in refused(path=file)
    assert "did you mean broker.attempts?" in refused({"attempts": "3"})

    monkeypatch.setenv("OLYMPUS_BUS_REQUEST_PROT", "1")
    assert "OLYMPUS_BUS_REQUEST_PROT: no setting has this name; did you mean OLYMPUS_BUS_REQUEST_PORT?" in refused()


def test_key_written_twice_in_a_file_is_refused(file: Path) -> None:
    """YAML would silently take the later one."""
    file.write_text("bus:\n  request_port: 1\n  request_port: 2\n")

    assert "line 3: bus.request_port is already set at" in refused(path=file)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bus: [1", "not valid YAML"),
        ("- a\n- b\n", "the file must hold 'key: value' lines"),
        ("bus: 7000\n", "section 'bus' must hold 'key: value' lines"),
        ("home: !!python/object:os.system x\n", "home is not a plain value"),
        ("bus: {request_port: {a: 1}}\n", "0 to 65535"),
    ],
)
def test_file_of_wrong_shape_is_refused(text: str, expected: str, file: Path) -> None:
    """A broken file says where it is and what it should be."""
    file.write_text(text)

    message = refused(path=file)

    assert str(file) in message
    assert expected in message


def test_home_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In words that name it."""

    def denied(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setenv("OLYMPUS_HOME", str(tmp_path))
    monkeypatch.setattr(Path, "is_file", denied)
    with pytest.raises(SettingsError, match=f"{tmp_path} is closed to this user"):
        load_settings()


def test_missing_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    """A file that was named has to be there."""
    assert "cannot be read: No such file" in refused(path=tmp_path / "nowhere.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"home: \xff\n")
    assert "not UTF-8" in refused(path=tmp_path / "bytes.yaml")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::", "pc1.home"])
def test_host_past_loopback_is_refused_unless_insecure_is_said(host: str) -> None:
    """Nobody opens the bus to a network by accident."""
    assert "bus.insecure: true" in refused({"bus.host": host})

    assert load_settings(None, {"bus.host": host, "bus.insecure": "true"}).bus.host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_hosts_need_no_permission(host: str) -> None:
    """No other machine reaches these."""
    assert load_settings(None, {"bus.host": host}).bus.host == host


def test_same_port_twice_is_refused_naming_both_keys() -> None:
    """The message names both keys and where each was written; port 0 is a different port each time."""
    message = refused({"bus.publish_port": "7000"})

    assert "bus.request_port and bus.publish_port are both 7000" in message
    assert "bus.request_port: default, bus.publish_port: flag --set bus.publish_port" in message
    assert load_settings(None, {"bus.publish_port": 0, "bus.request_port": 0}).bus.publish_port == 0


def test_log_subject_that_is_no_pattern_is_refused() -> None:
    """The event log's patterns are checked once, here."""
    assert "broker.log_subjects" in refused({"broker.log_subjects": "memory..x"})


def test_flag_without_equals_sign_is_refused() -> None:
    """The message shows how a flag is written."""
    with pytest.raises(SettingsError, match=r"SECTION\.KEY=VALUE"):
        parse_overrides(["bus.request_port"])
    assert parse_overrides(["models.default=a=b"]) == {"models.default": "a=b"}


def test_service_process_leaves_with_ex_config_when_misconfigured(capsys: pytest.CaptureFixture[str]) -> None:
    """A supervisor knows from the status that a restart would not help."""
    assert settings_of_process("broker", "", ["--set", "bus.request_port=7100"]).bus.request_port == 7100

    with pytest.raises(SystemExit) as left:
        settings_of_process("broker", "", ["--set", "bus.request_port=no"])

    assert left.value.code == module.EX_CONFIG == 78
    assert "bus.request_port = 'no'" in capsys.readouterr().err


# The file and the declaration -------------------------------------------------------------------------------------


def written_keys() -> dict[str, str]:
    """Key -> the comment above it, for every key in config/olympus.yaml."""
    keys: dict[str, str] = {}
    section, comment = "", ""
    for line in CONFIG.read_text().splitlines():
        if line.lstrip().startswith("#"):
            comment += " " + line.strip(" #")
        elif found := re.match(r"( *)(\w+):(.*)", line):
            section = section if found[1] else ""
            if found[3].strip():
                keys[f"{section}.{found[2]}" if section else found[2]] = comment
            else:
                section = found[2]
            comment = ""
        else:
            comment = ""
    return keys


def test_file_shows_every_key_and_no_other() -> None:
    """config/olympus.yaml and Settings list the same keys in the same order."""
    assert list(written_keys()) == [key.name for key in every_key()]


def test_file_shows_the_defaults() -> None:
    """Using the file unchanged changes nothing."""
    assert load_settings(CONFIG) == Settings()


@pytest.mark.parametrize("key", every_key(), ids=lambda key: key.name)
def test_file_comments_each_key_with_meaning_default_and_range(key: module.Key) -> None:
    """The comment above a key tells what Settings declares of it."""
    comment = written_keys()[key.name]
    meaning = key.description[0].upper() + key.description[1:]
    default = {True: "true", False: "false"}.get(key.default) if isinstance(key.default, bool) else key.default
    default = "as below" if isinstance(key.default, tuple) else default
    default = int(default) if isinstance(default, float) and default.is_integer() else default

    assert comment.strip().startswith(f"{meaning}. Default {default}")
    assert comment.endswith(f"allowed: {key.allowed}.")


def test_every_setting_is_read_somewhere() -> None:
    """No key stands in the file that changes nothing."""
    sources = [path for folder in ("bus", "broker", "workers") for path in (ROOT / folder).rglob("*.py")]
    code = "\n".join(path.read_text() for path in sources if path != ROOT / "bus" / "settings.py")

    unread = [key.name for key in every_key() if not re.search(rf"\.{key.name.rpartition('.')[2]}\b", code)]

    # These are read by the settings themselves, and by names that are made of a service's.
    own = {"home", "bus.insecure", "exporter.insecure", "legacy.insecure", "machine.addresses", "rest.insecure"}
    ports = {f"rest.{service}_{kind}" for service in Settings().rest.services for kind in ("port", "health_port")}
    assert set(unread) - own - ports == set()
