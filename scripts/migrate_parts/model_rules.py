"""What the old configuration said of models, as a piece of our rules file (docs/routing.md): profiles and rules."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from bus.settings import Settings, SettingsError
from migrate_parts.figures import text
from migrate_parts.model_registry import LLM_CONFIG, Listed, listed, name_of, read_yaml, registries
from migrate_parts.stores import find
from workers.models.routing.rules import SHIPPED_RULES, ProfileRules, Rule, read_rules

_HEAD: Final = """\
# Made of the configuration of the old system: take over what you want into your own rules file, {rules}
# (docs/routing.md). What only stands here as a comment has no counterpart.
"""

# Keys of a registry's entry, and what they are called in a rule.
_RULE_KEYS: Final = {
    "context_length": "context_tokens",
    "n_ctx": "context_tokens",
    "n_gpu_layers": "gpu_layers",
    "n_threads": "threads",
    "idle_timeout_seconds": "keep_alive_s",
    "priority": "priority",
}

# Of llm_config.yaml: what the backends do by themselves, or models have in their files.
_SECTIONS: Final = ("quantization_config", "kv_cache_config", "batch_processing_config", "global_flags")

# Purposes that no language model serves.
_SPEECH: Final = ("stt", "tts")


def fragment(root: Path, settings: Settings) -> str:
    """The text of the piece; empty where the old system said nothing. Raises UnusableStore."""
    models = [one for found in registries(root) for one in listed(root, found)]
    lines = list(_rules(models))
    for found in find(root, *LLM_CONFIG):
        content = read_yaml(found.path)
        lines += [f"\n# From {found.name}", *_profiles(content, models), *_comments(content)]
    return "\n".join([_HEAD.format(rules=settings.path(settings.models.rules)), *lines, ""]) if lines else ""


def flaw(path: Path) -> str:
    """Why a piece cannot be used as it is; empty where it can."""
    try:
        read_rules([path, SHIPPED_RULES])
    except SettingsError as error:
        return str(error)
    return ""


def _rules(models: list[Listed]) -> Iterator[str]:
    for one in models:
        name = name_of(one.path) if one.path is not None else one.id
        said = {ours: one.fields[old] for old, ours in _RULE_KEYS.items() if one.fields.get(old) is not None}
        good = {key: value for key, value in said.items() if _is_allowed(key, value)}
        if not said:
            continue
        yield from ("", "[[rule]]", f"models = [{_text(name)}]")
        yield from (f"{key} = {json.dumps(value)}" for key, value in good.items())
        yield from (f"# {key} = {_comment(value)}: out of range" for key, value in said.items() if key not in good)


def _is_allowed(key: str, value: Any) -> bool:
    if isinstance(value, bool):
        return False
    try:
        msgspec.convert({"models": ["x"], key: value}, Rule)
    except msgspec.ValidationError:
        return False
    return True


def _profiles(content: dict[str, Any], models: list[Listed]) -> Iterator[str]:
    policy = content.get("load_policy")
    shipped = read_rules([SHIPPED_RULES]).profiles
    aliases = {name: list(profile.aliases) for name, profile in shipped.items()}
    written: dict[str, list[str]] = {}
    for purpose, model in (policy if isinstance(policy, dict) else {}).items():
        purpose, model = text(purpose), text(model)
        if not model or not purpose.isidentifier():
            continue
        if purpose in _SPEECH:
            yield f"# {purpose}: {_comment(model)}; speech is not served"
            continue
        owner = next((name for name, names in aliases.items() if purpose in names), None)
        if owner is not None:
            # A name belongs to one profile.
            aliases[owner].remove(purpose)
        written[purpose] = _profile(purpose, _patterns(model, models), shipped.get(purpose), owner)
    for name, lines in written.items():
        yield from lines
        if name in shipped and aliases[name] != list(shipped[name].aliases):
            yield f"aliases = {_texts(aliases[name])}"
    for name, left in aliases.items():
        if name not in written and left != list(shipped[name].aliases):
            yield from ("", f"[profile.{name}]", f"aliases = {_texts(left)}")


def _profile(purpose: str, patterns: list[str], shipped: ProfileRules | None, owner: str | None) -> list[str]:
    if shipped is not None:
        return ["", f"[profile.{purpose}]", f"models = {_texts([*patterns, *shipped.models])}"]
    return [
        "",
        f"[profile.{purpose}]",
        f"models = {_texts(patterns)}",
        f"fallbacks = [{_text(owner or 'general')}]",
        'capabilities = ["generate"]',
    ]


def _patterns(model: str, models: list[Listed]) -> list[str]:
    """The names under which the model of a policy may be here."""
    files = [name_of(one.path or Path(_file(one))) for one in models if one.id == model and (one.path or _file(one))]
    return list(dict.fromkeys([*files, model, f"{model}*"]))


def _file(one: Listed) -> str:
    return text(one.fields.get("filename") or one.fields.get("model_path"))


def _comments(content: dict[str, Any]) -> Iterator[str]:
    models = content.get("models")
    for name, one in (models if isinstance(models, dict) else {}).items():
        if isinstance(one, dict) and one.get("repo_id"):
            yield f"# {_comment(name)} was {_comment(one['repo_id'])} {_comment(one.get('filename', ''))}".rstrip()
    for section in _SECTIONS:
        if content.get(section):
            yield f"# {section} = {_comment(content[section])}"


def _comment(value: Any) -> str:
    told = value if isinstance(value, str) else json.dumps(value, default=str)
    return "".join(char if char.isprintable() else "?" for char in told)[:1_000]


def _text(value: str) -> str:
    return json.dumps(_comment(value)[:128], ensure_ascii=False)


def _texts(values: list[str]) -> str:
    return f"[{', '.join(_text(value) for value in values[:64])}]"
