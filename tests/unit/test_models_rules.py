"""The rules file: what it says about each model, how files lie over each other, and what is refused in which words."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.settings import ModelSettings, Settings, SettingsError
from workers.models.routing.rules import (
    SHIPPED_RULES,
    ModelRules,
    Rules,
    line_of,
    load_rules,
    matches,
    read_rules,
    with_version,
)


def rules_of(tmp_path: Path, text: str, settings: ModelSettings | None = None) -> Rules:
    """Rules of a file with this text, over the shipped one."""
    path = tmp_path / "models.toml"
    path.write_text(text)
    return read_rules([path, SHIPPED_RULES], settings)


def refused(tmp_path: Path, text: str) -> str:
    """The message with which a file is refused, without its folder."""
    with pytest.raises(SettingsError) as caught:
        rules_of(tmp_path, text)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_shipped_file_can_be_used_as_it_is() -> None:
    """It has the four profiles, the endpoints it names and a rule for the demo model."""
    rules = read_rules([SHIPPED_RULES])

    assert list(rules.profiles) == ["fast", "general", "code", "creative"]
    assert rules.of("olympus-demo").priority == 4
    assert rules.of("unheard-of") == ModelRules()
    assert rules.remotes == []


def test_first_rule_that_gives_a_key_has_the_say(tmp_path: Path) -> None:
    """Later rules fill in what earlier ones leave open, key by key, sampling options too."""
    rules = rules_of(
        tmp_path,
        """
        [[rule]]
        models = ["qwen2.5-7b*"]
        priority = 1
        sampling = { temperature = 0.1 }

        [[rule]]
        models = ["llama*", "QWEN*"]
        priority = 5
        pinned = true
        swappable = false
        arguments = ["--enforce-eager"]
        sampling = { temperature = 0.9, top_k = 7 }
        """,
    )

    both, second = rules.of("Qwen2.5-7B-Instruct"), rules.of("qwen3")
    assert (both.priority, both.is_pinned, both.is_swappable) == (1, True, False)
    assert both.sampling == {"temperature": 0.1, "top_k": 7}
    assert both.arguments == ("--enforce-eager",)
    assert (second.priority, second.sampling["temperature"]) == (5, 0.9)


def test_own_file_lies_over_the_shipped_one_key_by_key(tmp_path: Path) -> None:
    """A profile keeps what the own file does not say, and its origin is the file with the last word."""
    shipped = read_rules([SHIPPED_RULES]).profiles["fast"]
    rules = rules_of(tmp_path, '[profile.fast]\nmodels = ["tiny"]\n[profile.law]\nmodels = ["saul*"]\n')

    assert rules.profiles["fast"].models == ("tiny",)
    assert rules.profiles["fast"].options == shipped.options
    assert rules.profiles["fast"].origin.endswith("models.toml") and str(tmp_path) in rules.profiles["fast"].origin
    assert rules.profiles["general"].origin == str(SHIPPED_RULES)
    assert rules.profiles["law"].models == ("saul*",)


def test_remote_takes_address_and_key_from_its_provider(tmp_path: Path) -> None:
    """What a remote model does not say itself its provider says; the key is named, never held."""
    rules = rules_of(
        tmp_path,
        """
        [provider.lab]
        base_url = "http://127.0.0.1:8080/v1"
        key_env = "LAB_KEY"
        sampling = { top_p = 0.5 }

        [[remote]]
        name = "big"
        provider = "lab"
        model = "big-instruct"
        context_tokens = 4096
        capabilities = ["chat"]

        [[remote]]
        name = "own"
        base_url = "http://127.0.0.1:9090/v1/"
        """,
    )

    big, own = rules.remotes
    assert (big.remote.base_url, big.remote.model, big.remote.key_env) == (
        "http://127.0.0.1:8080/v1",
        "big-instruct",
        "LAB_KEY",
    )
    assert (big.context_tokens, big.capabilities) == (4096, ("chat",))
    assert rules.of("big").sampling == {"top_p": 0.5}
    assert (own.remote.base_url, own.remote.model, own.remote.timeout_s) == ("http://127.0.0.1:9090/v1", "own", 120.0)


def test_unknown_names_go_to_the_provider_that_settings_name() -> None:
    """models.provider and models.host make an endpoint; without one, a name that is unknown stays unknown."""

    def endpoint(**models: str) -> tuple[str, str] | None:
        settings = ModelSettings(**models)  # type: ignore[arg-type]
        remote = read_rules([SHIPPED_RULES], settings).provider_remote("qwen3:8b")
        return (remote.remote.base_url, remote.remote.key_env) if remote is not None else None

    assert endpoint() is None
    assert endpoint(provider="vllm") is None
    assert endpoint(provider="ollama") == ("http://127.0.0.1:11434/v1", "")
    assert endpoint(provider="ollama", host="http://127.0.0.1:7777") == ("http://127.0.0.1:7777/v1", "")
    assert endpoint(provider="openai") == ("https://api.openai.com/v1", "OPENAI_API_KEY")
    assert endpoint(host="http://127.0.0.1:7777/api/") == ("http://127.0.0.1:7777/api", "")


def test_provider_runs_what_it_can_and_rules_go_before_it(tmp_path: Path) -> None:
    """A backend is taken for a format that it reads; for others the usual one runs."""
    vllm = rules_of(tmp_path, '[[rule]]\nmodels = ["phi*"]\nbackend = "transformers"\n', ModelSettings(provider="vllm"))

    assert vllm.backend_for("qwen", "safetensors") == "vllm"
    assert vllm.backend_for("phi-4", "safetensors") == "transformers"
    assert vllm.backend_for("qwen", "gguf") == "llama.cpp"
    assert Rules().backend_for("qwen", "safetensors") == "transformers"
    assert Rules().backend_for("qwen", "remote") == "openai"


def test_temperature_of_the_settings_is_used_where_no_rule_names_one(tmp_path: Path) -> None:
    """-1 leaves it to the model."""
    text = '[[rule]]\nmodels = ["a"]\nsampling = { temperature = 0.1 }\n'

    assert rules_of(tmp_path, text, ModelSettings(temperature=0.7)).of("a").sampling == {"temperature": 0.1}
    assert rules_of(tmp_path, text, ModelSettings(temperature=0.7)).of("b").sampling == {"temperature": 0.7}
    assert rules_of(tmp_path, text).of("b").sampling == {}


def test_missing_default_file_means_the_shipped_one(tmp_path: Path) -> None:
    """Only a file that somebody named must be there."""
    settings = Settings(home=str(tmp_path))
    assert load_rules(settings).profiles.keys() == read_rules([SHIPPED_RULES]).profiles.keys()

    (tmp_path / "models.toml").write_text('[profile.law]\nmodels = ["saul"]\n')
    assert "law" in load_rules(settings).profiles

    named = Settings(home=str(tmp_path), models=ModelSettings(rules="mine.toml"))
    with pytest.raises(SettingsError, match=r"models\.rules = 'mine\.toml': there is no file"):
        load_rules(named)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '[[rule]]\nmodels = ["a"]\n\n[[rule]]\nmodels = ["b"]\npriority = 9\n',
            "models.toml line 6: rule[2].priority = 9 is not allowed; allowed: 1 to 5 (whole number)",
        ),
        (
            '[[rule]]\nmodels = ["a"]\nprioriti = 3',
            "models.toml line 3: unknown key rule[1].prioriti; did you mean priority?",
        ),
        ("[[rule]]\npriority = 3", "models.toml line 1: rule[1] lacks the key 'models'"),
        (
            '[[rule]]\nmodels = ["a"]\n[rule.sampling]\ntemperature = 99',
            "models.toml line 4: rule[1].sampling.temperature = 99 is not allowed; allowed: 0 to 10",
        ),
        (
            "[profile.fast]\noptions = { top_p = 0 }",
            "models.toml line 2: profile.fast.options.top_p = 0 is not allowed; allowed: above 0 to 1",
        ),
        (
            "[profile.fast]\noptions = { conversation_id = 'x' }",
            "models.toml line 2: unknown key profile.fast.options.conversation_id; allowed: max_tokens, temperature",
        ),
        (
            '[[rule]]\nmodels = ["a"]\nbackend = "cuda"',
            "rule[1].backend = 'cuda' is not allowed; allowed: llama.cpp, openai",
        ),
        ('[[rule]]\nmodels = ["a"]\ndevice = "tpu"', "rule[1].device = 'tpu' is not allowed; allowed: text"),
        ('[[rule]]\nmodels = ["a"]\nkeep_alive_s = -2', "keep_alive_s = -2 is not allowed; allowed: -1 to 3153600000"),
        ('[[rule]]\nmodels = ["a"]\npinned = 1', "rule[1].pinned = 1 is not allowed; allowed: true, false"),
        ('[[remote]]\nname = "a"', "models.toml line 1: remote[1] needs 'provider' or 'base_url'"),
        (
            '[[remote]]\nname = "a"\nprovider = "nix"',
            "remote[1].provider = 'nix' is not allowed; allowed: ollama, openai",
        ),
        ('[provider.x]\nbase_url = "http://me:secret@x/"', "provider.x.base_url"),
        (
            '[profile.x]\nfallbacks = ["y"]\n[profile.y]\nfallbacks = ["x"]',
            "profile.x.fallbacks = ['y'] is not allowed; it leads back to itself",
        ),
        ('[profile.x]\naliases = ["quality"]', "it is a name of the profile 'general' already"),
        ("[profiles.x]\nmodels = []", "models.toml line 1: unknown key profiles; did you mean profile?"),
        ("rule = 3", "rule = 3 is not allowed; write each one as a table [[rule]]"),
        ("[profile]\nfast = 3", "profile.fast = 3 is not allowed"),
        ("a = ", "models.toml: not valid TOML"),
    ],
)
def test_what_is_wrong_is_named_with_file_key_value_and_range(text: str, expected: str, tmp_path: Path) -> None:
    """Every mistake is refused in words that tell where it stands and what would be right."""
    assert expected in refused(tmp_path, text)


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """A folder in its place, or bytes that are no text."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")

    for name, expected in (("folder", "cannot be read"), ("bytes", "not UTF-8 text")):
        with pytest.raises(SettingsError, match=expected):
            read_rules([tmp_path / name])


def test_names_match_without_regard_to_case() -> None:
    """Wildcards stand for any part of a name; without one the whole name counts."""
    assert matches("Qwen2.5-7B", ["llama*", "qwen2.5-?b"])
    assert not matches("my-qwen", ["qwen*"])
    assert not matches("qwen2", ["qwen"])


def test_address_gets_the_version_only_where_it_has_no_path() -> None:
    """Servers with OpenAI's API have it below /v1; who writes a path knows better."""
    assert with_version("http://127.0.0.1:11434/") == "http://127.0.0.1:11434/v1"
    assert with_version("https://example.org/openai/v3") == "https://example.org/openai/v3"


@given(st.text(max_size=200))
def test_looking_for_a_line_ends_for_any_text(text: str) -> None:
    """The line is a help for a person: whatever stands in the file, looking for it never fails."""
    line = line_of(text, ("rule", 0, "sampling", "top_p"))

    assert line is None or 1 <= line <= len(text.splitlines())
