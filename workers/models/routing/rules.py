"""The rules file: how each model is held and run, the endpoints elsewhere, and the routing profiles.

    [[rule]]          models = ["qwen*"] and what holds for them; the first rule that says something wins, key by key
    [provider.NAME]   an endpoint that speaks OpenAI's API
    [[remote]]        a model of such an endpoint, under a name of its own
    [profile.NAME]    candidates for a purpose

`config/models.toml` is the shipped file. Where `models.rules` names another one, that goes before the shipped one: its
rules first, its providers, remotes and profiles in the place of those with the same name (a profile key by key).
It does not know which models there are: `routing` brings the two together.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NoReturn, TypeVar

import msgspec
from msgspec import Meta

from bus.settings import ModelSettings, Settings, SettingsError
from schemas.bodies.model import Capability, ContextTokens, Device, KeepAlive, ModelName, Priority, Sampling
from workers.models.backends.backend import Remote

SHIPPED_RULES: Final = Path(__file__).parents[3] / "config" / "models.toml"

BackendName = Literal["llama.cpp", "transformers", "vllm", "openai"]

# What runs a format where nothing else is said, first choice first.
BACKENDS_OF: Final[Mapping[str, tuple[BackendName, ...]]] = {
    "gguf": ("llama.cpp",),
    "safetensors": ("transformers", "vllm"),
    "remote": ("openai",),
}

# Providers that are always an endpoint; the others are one where `models.host` says where.
_ENDPOINTS: Final = frozenset({"ollama", "openai"})

_Name = Annotated[str, Meta(min_length=1, max_length=128)]
_Variable = Annotated[str, Meta(max_length=128, pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$(?!\n)")]
_Url = Annotated[str, Meta(max_length=2048, pattern=r"^https?://[^/\s?#@]+(/[^\s?#]*)?$(?!\n)")]
_Timeout = Annotated[float, Meta(gt=0, le=86_400)]
_Patterns = Annotated[list[_Name], Meta(min_length=1, max_length=1_000)]


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file as it is written. A key it does not know is an error, so that a typo is never ignored."""


class Rule(Table, frozen=True, kw_only=True):
    """What holds for the models that match one of `models`; None leaves it to later rules and to the settings."""

    models: _Patterns
    backend: BackendName | None = None
    device: Device | None = None
    context_tokens: ContextTokens | None = None
    parallel: Annotated[int, Meta(ge=1, le=256)] | None = None
    threads: Annotated[int, Meta(ge=0, le=1024)] | None = None
    gpu_layers: Annotated[int, Meta(ge=-1, le=10_000)] | None = None
    priority: Priority | None = None
    is_pinned: bool | None = msgspec.field(name="pinned", default=None)
    is_swappable: bool | None = msgspec.field(name="swappable", default=None)
    keep_alive_s: KeepAlive | None = None
    max_idle_s: Annotated[float, Meta(ge=0, le=36_500 * 86_400)] | None = None
    sampling: dict[str, Any] | None = None
    arguments: Annotated[list[str], Meta(max_length=256)] | None = None
    weights: Annotated[str, Meta(min_length=1, max_length=4_096)] | None = None


class Provider(Table, frozen=True, kw_only=True):
    """An endpoint. key_env: the variable of the environment that holds its key; the key itself is never written down."""

    base_url: _Url
    key_env: _Variable = ""
    timeout_s: _Timeout = 120.0
    sampling: dict[str, Any] = {}


class RemoteTable(Table, frozen=True, kw_only=True):
    """A model of an endpoint: of a `provider`, or with its own `base_url`. model: what the endpoint calls it."""

    name: ModelName
    model: _Name | None = None
    provider: _Name | None = None
    base_url: _Url | None = None
    key_env: _Variable | None = None
    timeout_s: _Timeout | None = None
    capabilities: tuple[Capability, ...] = ("generate", "chat")
    context_tokens: ContextTokens | None = None


class ProfileTable(Table, frozen=True, kw_only=True):
    """A profile as it is written; None leaves a key to the shipped profile of the same name."""

    description: Annotated[str, Meta(max_length=1_024)] | None = None
    aliases: Annotated[list[_Name], Meta(max_length=64)] | None = None
    models: Annotated[list[_Name], Meta(max_length=64)] | None = None
    fallbacks: Annotated[list[_Name], Meta(max_length=64)] | None = None
    capabilities: Annotated[list[Capability], Meta(max_length=16)] | None = None
    prefer: Literal["order", "loaded"] | None = None
    size: Literal["smallest", "largest"] | None = None
    options: dict[str, Any] | None = None


class ModelRules(msgspec.Struct, frozen=True, kw_only=True):
    """How one model is held and run. None is left to the settings, or to the model.

    priority: 1 is evicted last, 5 first. is_pinned: loaded at start, never evicted. is_swappable: may be evicted for
    another one. sampling: options that requests take where they name none (fields of schemas.bodies.model.Sampling).
    arguments: more of them for a backend that is a program of its own. weights: folder of safetensors that holds the same
    model, to train it from; absolute.
    """

    backend: BackendName | None = None
    device: str | None = None
    context_tokens: int | None = None
    parallel: int | None = None
    threads: int | None = None
    gpu_layers: int | None = None
    priority: int = 3
    is_pinned: bool = False
    is_swappable: bool = True
    keep_alive_s: float | None = None
    max_idle_s: float | None = None
    sampling: dict[str, Any] = {}
    arguments: tuple[str, ...] = ()
    weights: str = ""


class RemoteModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that an endpoint elsewhere runs. context_tokens None: not said, see the database of limits."""

    name: str
    remote: Remote
    capabilities: tuple[Capability, ...] = ("generate", "chat")
    context_tokens: int | None = None
    sampling: dict[str, Any] = {}


class ProfileRules(msgspec.Struct, frozen=True, kw_only=True):
    """A purpose and who serves it.

    models: names, or patterns with wildcards, best first; of those that match one pattern the one of `size` goes first.
    fallbacks: names of profiles or models, tried when none of `models` will do. prefer: the first that will do
    ("order"), or the first of them that is loaded already ("loaded"). options: sampling options its requests take.
    """

    name: str
    description: str = ""
    aliases: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] = ()
    capabilities: tuple[Capability, ...] = ()
    prefer: Literal["order", "loaded"] = "order"
    size: Literal["smallest", "largest"] = "largest"
    options: dict[str, Any] = {}
    origin: str = ""


class Rules:
    """Everything the files say, checked. Make one with `load_rules` or `read_rules`."""

    def __init__(
        self,
        rules: Sequence[Rule] = (),
        providers: Mapping[str, Provider] | None = None,
        remotes: Sequence[RemoteModel] = (),
        profiles: Sequence[ProfileRules] = (),
        settings: ModelSettings | None = None,
    ) -> None:
        self._rules = tuple(rules)
        self._providers = dict(providers or {})
        self._settings = settings or ModelSettings()
        self.remotes: list[RemoteModel] = list(remotes)
        self.profiles: dict[str, ProfileRules] = {profile.name: profile for profile in profiles}

    def of(self, model: str) -> ModelRules:
        """What holds for `model`: of the rules that match it, the first that says something about a key."""
        said: dict[str, Any] = {}
        sampling: dict[str, Any] = {}
        for rule in self._rules:
            if not matches(model, rule.models):
                continue
            for key in ModelRules.__struct_fields__:
                if key != "sampling" and key not in said and (value := getattr(rule, key)) is not None:
                    said[key] = tuple(value) if key == "arguments" else value
            sampling = {**(rule.sampling or {}), **sampling}
        remote = next((one for one in self.remotes if one.name == model), None)
        if remote is not None:
            sampling = {**remote.sampling, **sampling}
        if self._settings.temperature >= 0:
            sampling.setdefault("temperature", self._settings.temperature)
        return ModelRules(sampling=sampling, **said)

    def backend_for(self, model: str, format: str) -> str:
        """What runs `model`: the rule's word, else `models.provider` if it can run `format`, else the format's usual one."""
        fitting = BACKENDS_OF.get(format, ())
        said = self.of(model).backend or self._settings.provider
        return said if said in fitting else next(iter(fitting), "")

    def provider_remote(self, model: str) -> RemoteModel | None:
        """`model` at the endpoint of `models.provider` and `models.host`, where unknown names go; None without one."""
        provider = self._endpoint()
        if provider is None:
            return None
        remote = Remote(base_url=provider.base_url, model=model, key_env=provider.key_env, timeout_s=provider.timeout_s)
        return RemoteModel(name=model, remote=remote, sampling=provider.sampling)

    def profile(self, name: str) -> ProfileRules | None:
        """The profile of this name, or with this alias."""
        found = self.profiles.get(name)
        return found or next((one for one in self.profiles.values() if name in one.aliases), None)

    def _endpoint(self) -> Provider | None:
        name, host = self._settings.provider, self._settings.host
        if not host and name not in _ENDPOINTS:
            return None
        known = self._providers.get(name)
        if not host:
            return known
        base_url = with_version(host)
        return msgspec.structs.replace(known, base_url=base_url) if known else Provider(base_url=base_url)


def load_rules(settings: Settings) -> Rules:
    """The rules that hold with these settings: the file of `models.rules`, if there is one, and the shipped one below.

    Raises SettingsError for a file that cannot be read or says something wrong, and for one that is missing although
    `models.rules` names it (only the default may be missing).
    """
    path = settings.path(settings.models.rules)
    if not path.exists():
        if settings.models.rules != ModelSettings().rules:
            raise SettingsError(f"models.rules = {settings.models.rules!r}: there is no file {path}")
        return read_rules([SHIPPED_RULES], settings.models)
    return read_rules([path, SHIPPED_RULES], settings.models)


def read_rules(paths: Sequence[Path], settings: ModelSettings | None = None) -> Rules:
    """The rules of these files, an earlier one before a later one. Raises SettingsError naming file, key and value."""
    files = [_File(path) for path in paths]
    providers: dict[str, Provider] = {}
    profiles: dict[str, ProfileRules] = {}
    remotes: dict[str, RemoteModel] = {}
    for file in reversed(files):
        providers.update(file.providers())
        for name, table in file.profiles().items():
            profiles[name] = _overlaid(profiles.get(name), name, table, str(file.path))
    for file in reversed(files):
        remotes.update({remote.name: remote for remote in file.remotes(providers)})
    for file in files:
        file.check_fallbacks(profiles)
    _check_aliases(profiles, files)
    return Rules(
        [rule for file in files for rule in file.rules()],
        providers,
        list(remotes.values()),
        list(profiles.values()),
        settings,
    )


def matches(model: str, patterns: Iterable[str]) -> bool:
    """True where one of `patterns` is `model`, or matches it with the wildcards `*`, `?` and `[...]`; case does not count."""
    return any(fnmatch.fnmatchcase(model.lower(), pattern.lower()) for pattern in patterns)


def with_version(host: str) -> str:
    """`http://127.0.0.1:11434` -> `http://127.0.0.1:11434/v1`: where an endpoint of OpenAI's API is, if no path is given."""
    address = host.rstrip("/")
    return address if "/" in address.partition("://")[2] else f"{address}/v1"


def _overlaid(below: ProfileRules | None, name: str, table: ProfileTable, origin: str) -> ProfileRules:
    said = {
        key: tuple(value) if isinstance(value, list) else value
        for key in table.__struct_fields__
        if (value := getattr(table, key)) is not None
    }
    return msgspec.structs.replace(below or ProfileRules(name=name), **said, origin=origin)


def _check_aliases(profiles: Mapping[str, ProfileRules], files: Sequence[_File]) -> None:
    owners: dict[str, str] = {name: name for name in profiles}
    for profile in profiles.values():
        for alias in profile.aliases:
            owner = owners.setdefault(alias, profile.name)
            if owner != profile.name:
                file = next(file for file in files if str(file.path) == profile.origin)
                file.refuse(
                    ("profile", profile.name, "aliases"), alias, f"it is a name of the profile {owner!r} already"
                )


# Reading one file ---------------------------------------------------------------------------------------------------

_Path = tuple[str | int, ...]
_TableT = TypeVar("_TableT", bound=msgspec.Struct)

_SECTIONS: Final = ("rule", "provider", "remote", "profile")
_UNKNOWN_FIELD: Final = re.compile(r"unknown field `([^`]*)`")
_MISSING_FIELD: Final = re.compile(r"missing required field `([^`]*)`")
_WHERE: Final = re.compile(r"at `\$\.?([^`]*)`")


class _File:
    """One file's tables, converted one by one so that an error can say which key it is about."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"{path}: the rules file cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise SettingsError(f"{path}: the rules file is not UTF-8 text (byte {error.start})") from error
        try:
            self._tree = tomllib.loads(self._text)
        except tomllib.TOMLDecodeError as error:
            raise SettingsError(f"{path}: not valid TOML: {error}") from error
        for key in self._tree:
            if key not in _SECTIONS:
                self._refuse_unknown((key,), key, _SECTIONS)

    def rules(self) -> list[Rule]:
        found = [self._table(Rule, where, raw) for where, raw in self._list("rule")]
        for number, rule in enumerate(found):
            self._check_sampling(("rule", number, "sampling"), rule.sampling or {})
        return [self._with_absolute_weights(rule) for rule in found]

    def _with_absolute_weights(self, rule: Rule) -> Rule:
        if rule.weights is None:
            return rule
        folder = (self.path.parent / Path(rule.weights).expanduser()).resolve()
        return msgspec.structs.replace(rule, weights=str(folder))

    def providers(self) -> dict[str, Provider]:
        found = {str(where[1]): self._table(Provider, where, raw) for where, raw in self._named("provider")}
        for name, provider in found.items():
            self._check_sampling(("provider", name, "sampling"), provider.sampling)
        return found

    def profiles(self) -> dict[str, ProfileTable]:
        found = {str(where[1]): self._table(ProfileTable, where, raw) for where, raw in self._named("profile")}
        for name, profile in found.items():
            if re.fullmatch(r"[A-Za-z0-9._:/+-]{1,128}", name) is None:
                self.refuse(("profile", name), name, "a profile's name has letters, digits and . _ : / + - only")
            self._check_sampling(("profile", name, "options"), profile.options or {})
        return found

    def remotes(self, providers: Mapping[str, Provider]) -> Iterator[RemoteModel]:
        seen: set[str] = set()
        for where, raw in self._list("remote"):
            table = self._table(RemoteTable, where, raw)
            if table.name in seen:
                self.refuse((*where, "name"), table.name, "another remote has this name already")
            seen.add(table.name)
            yield self._remote(where, table, providers)

    def check_fallbacks(self, profiles: Mapping[str, ProfileRules]) -> None:
        """A profile that falls back on itself, or through others to itself, would never end."""
        for name in self._tree.get("profile", {}):
            reached, ahead = set[str](), list(profiles[name].fallbacks)
            while ahead:
                other = ahead.pop()
                if other == name:
                    self.refuse(
                        ("profile", name, "fallbacks"), list(profiles[name].fallbacks), "it leads back to itself"
                    )
                if other in profiles and other not in reached:
                    reached.add(other)
                    ahead += profiles[other].fallbacks

    def refuse(self, where: _Path, value: Any, why: str) -> NoReturn:
        """Raise SettingsError naming file, line where it can be found, key, value and what would be allowed."""
        text = repr(value)
        shown = text if len(text) <= 80 else text[:77] + "..."
        raise SettingsError(f"{self._place(where)}: {_dotted(where)} = {shown} is not allowed; {why}")

    def _remote(self, where: _Path, table: RemoteTable, providers: Mapping[str, Provider]) -> RemoteModel:
        provider = providers.get(table.provider) if table.provider is not None else None
        if table.provider is not None and provider is None:
            self.refuse(
                (*where, "provider"), table.provider, f"allowed: {', '.join(sorted(providers)) or 'none is given'}"
            )
        base_url = table.base_url or (provider.base_url if provider else None)
        if base_url is None:
            raise SettingsError(f"{self._place(where)}: {_dotted(where)} needs 'provider' or 'base_url'")
        remote = Remote(
            base_url=base_url.rstrip("/"),
            model=table.model or table.name,
            key_env=table.key_env if table.key_env is not None else (provider.key_env if provider else ""),
            timeout_s=table.timeout_s or (provider.timeout_s if provider else Remote.__struct_defaults__[-1]),
        )
        return RemoteModel(
            name=table.name,
            remote=remote,
            capabilities=table.capabilities,
            context_tokens=table.context_tokens,
            sampling=provider.sampling if provider else {},
        )

    def _list(self, section: str) -> Iterator[tuple[_Path, Any]]:
        tables = self._tree.get(section, [])
        if not isinstance(tables, list):
            self.refuse((section,), tables, f"write each one as a table [[{section}]]")
        return (((section, number), raw) for number, raw in enumerate(tables))

    def _named(self, section: str) -> Iterator[tuple[_Path, Any]]:
        tables = self._tree.get(section, {})
        if not isinstance(tables, dict):
            self.refuse((section,), tables, f"write each one as a table [{section}.NAME]")
        return (((section, name), raw) for name, raw in tables.items())

    def _check_sampling(self, where: _Path, options: Mapping[str, Any]) -> None:
        for key in options:
            if key not in OPTIONS:
                self._refuse_unknown((*where, key), key, OPTIONS)
        self._table(Sampling, where, dict(options))

    def _table(self, kind: type[_TableT], where: _Path, raw: Any) -> _TableT:
        try:
            return msgspec.convert(raw, kind)
        except msgspec.ValidationError as error:
            self._explain(kind, where, raw, str(error), error)

    def _explain(self, kind: type[msgspec.Struct], where: _Path, raw: Any, message: str, cause: Exception) -> NoReturn:
        if found := _UNKNOWN_FIELD.search(message):
            self._refuse_unknown((*where, found[1]), found[1], kind.__struct_encode_fields__)
        if found := _MISSING_FIELD.search(message):
            raise SettingsError(f"{self._place(where)}: {_dotted(where)} lacks the key {found[1]!r}") from cause
        inside = _WHERE.search(message)
        key = re.split(r"[.\[]", inside[1])[0] if inside else ""
        if not key:
            self.refuse(where, raw, "write a table with 'key = value' lines")
        self.refuse((*where, key), raw.get(key), f"allowed: {allowed(kind, key)}")

    def _refuse_unknown(self, where: _Path, key: str, known: Sequence[str]) -> NoReturn:
        nearest = next(iter(difflib.get_close_matches(key, known, n=1, cutoff=0.6)), None)
        hint = f"did you mean {nearest}?" if nearest else f"allowed: {', '.join(known)}"
        raise SettingsError(f"{self._place(where)}: unknown key {_dotted(where)}; {hint}")

    def _place(self, where: _Path) -> str:
        line = line_of(self._text, where)
        return f"{self.path} line {line}" if line else str(self.path)


# The sampling options that a rule, a provider or a profile may give. The others belong to a single request.
_OF_A_REQUEST: Final = ("conversation_id", "json_schema", "grammar", "logprobs", "truncate")
OPTIONS: Final = tuple(name for name in Sampling.__struct_fields__ if name not in _OF_A_REQUEST)


def allowed(kind: type[msgspec.Struct], key: str) -> str:
    """The values of a field of `kind`, for a person: `1 to 5 (whole number)`."""
    # Imported here because only messages need it.
    from msgspec import inspect

    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    field = next(field for field in info.fields if field.encode_name == key)
    return _allowed(field.type)


def _allowed(kind: Any) -> str:
    from msgspec import inspect

    match kind:
        case inspect.UnionType():
            return next(_allowed(one) for one in kind.types if not isinstance(one, inspect.NoneType))
        case inspect.Metadata():
            return _allowed(kind.type)
        case inspect.IntType() | inspect.FloatType():
            low = f"above {kind.gt:g}" if kind.gt is not None else f"{kind.ge:.15g}"
            whole = " (whole number)" if isinstance(kind, inspect.IntType) else ""
            return f"{low} to {kind.le:.15g}{whole}"
        case inspect.LiteralType():
            return ", ".join(str(value) for value in kind.values)
        case inspect.BoolType():
            return "true, false"
        case inspect.ListType() | inspect.VarTupleType():
            size = f" ({kind.min_length or 0} to {kind.max_length})" if kind.max_length else ""
            return f"a list{size} of: {_allowed(kind.item_type)}"
        case inspect.StrType():
            shape = f" that matches {kind.pattern.removesuffix('(?!' + chr(92) + 'n)')}" if kind.pattern else ""
            size = f" of {kind.min_length or 0} to {kind.max_length} characters" if kind.max_length else ""
            return f"text{size}{shape}"
        case _:
            return "a table"


def _dotted(where: _Path) -> str:
    """`("rule", 0, "priority")` -> `rule[1].priority`: counted from 1, as a person counts the tables of a file."""
    text = ""
    for part in where:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if text else part
    return text


_HEADER: Final = re.compile(r"^\s*\[\[?\s*([^\]]+?)\s*\]\]?\s*(#.*)?$")


def line_of(text: str, where: _Path) -> int | None:
    """Line, counted from 1, of a key or else of the table it is in; None where the text is written in another way.

    tomllib keeps no positions. Headers of tables and keys at the start of a line are found, which is how they are
    written; one in an inline table is looked for as its table.
    """
    names = [part for part in where if isinstance(part, str)]
    ordinal = next((part for part in where if isinstance(part, int)), None)
    table: tuple[str, ...] = ()
    count, best, depth = -1, None, 0
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = tuple(
                part.strip().strip("\"'") for part in re.split(r"\.(?=(?:[^\"]*\"[^\"]*\")*[^\"]*$)", header[1])
            )
            count += line.lstrip().startswith("[[") and table == (names[0],)
            reached = table
        else:
            key = re.match(r"\s*([A-Za-z0-9_.\"'-]+)\s*=", line)
            if key is None:
                continue
            reached = (*table, *(part.strip("\"'") for part in key[1].split(".")))
        if ordinal is not None and count != ordinal:
            continue
        common = min(len(reached), len(names))
        if common > depth and list(reached[:common]) == names[:common]:
            best, depth = number, common
    return best
