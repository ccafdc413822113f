"""Chooses a model for a profile, a task or a name: what fits, what is loaded already, and why the others do not do.

It decides on what the catalogue shows at that moment. It loads nothing and holds no state.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec

from bus.settings import ModelSettings
from schemas.bodies.model import ModelInfo
from schemas.bodies.model_trials import (
    Limits,
    ModelLimits,
    Profile,
    ProfileList,
    Profiles,
    Route,
    Routed,
    RoutePassed,
)
from schemas.errors import NotFound, Unprocessable
from workers.models.routing.limits import LimitsDatabase
from workers.models.routing.rules import ProfileRules, Rules, matches

# The profile of requests that name neither a profile nor a task, and of tasks that no profile claims.
GENERAL: Final = "general"


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """What a request asks of a model. answer_tokens: room that its answer should have beside the prompt."""

    capabilities: tuple[str, ...] = ()
    prompt_tokens: int = 0
    answer_tokens: int = 0


class Routing:
    """`model.route`, `.profiles`, `.limits`, and the choice behind a profile's name in any request.

    entries: the catalogue with the state of each model, as `model.list` shows it, remote ones too.
    """

    def __init__(
        self,
        rules: Rules,
        settings: ModelSettings,
        entries: Callable[[], Sequence[ModelInfo]],
        limits: LimitsDatabase | None = None,
    ) -> None:
        self._rules = rules
        self._settings = settings
        self._entries = entries
        self._limits = limits or LimitsDatabase()

    def is_profile(self, name: str) -> bool:
        """True for the name of a profile that no model has too: then `resolve` chooses."""
        if self._rules.profile(name) is None:
            return False
        return not any(name == entry.name or name in entry.aliases for entry in self._entries())

    def resolve(self, name: str | None, prompt_tokens: int = 0, capabilities: Sequence[str] = ()) -> Routed:
        """What a request's `model` means: the name or alias of a model as it stands, else a profile's choice.

        None is the setting models.default. A name that is neither is handed back, for the catalogue to refuse. Raises
        Unprocessable where nothing of a profile's will do, with the reason for each candidate.
        """
        name = name or self._settings.default
        entries = self._entries()
        profile = self._rules.profile(name)
        if profile is None or not self.is_profile(name):
            is_loaded = any(entry.state == "loaded" and name in (entry.name, *entry.aliases) for entry in entries)
            return Routed(model=name, profile="", reason="asked for by name", is_loaded=is_loaded, passed_over=[])
        return self._choose(profile, entries, prompt_tokens, capabilities, f"profile {profile.name}")

    async def route(self, request: Route) -> Routed:
        """Choose for a profile, or for a kind of task that one claims. Raises NotFound for a profile that is none."""
        if request.profile is not None:
            profile, asked = self._profile(request.profile), f"profile {request.profile}"
        elif request.task is not None:
            claimed = self._rules.profile(request.task)
            profile = claimed or self._profile(GENERAL)
            asked = f"task {request.task}" if claimed else f"task {request.task}, which no profile claims"
        else:
            profile, asked = self._profile(GENERAL), f"profile {GENERAL}"
        return self._choose(profile, self._entries(), request.prompt_tokens, request.capabilities, asked)

    async def profiles(self, request: Profiles) -> ProfileList:
        """Every profile as it holds, with the file that had the last word about it."""
        return ProfileList(
            profiles=[
                Profile(
                    name=one.name,
                    description=one.description,
                    models=[*one.models, *one.fallbacks],
                    capabilities=list(one.capabilities),
                    options=one.options,
                    origin=one.origin,
                )
                for one in self._rules.profiles.values()
            ]
        )

    async def limits(self, request: ModelLimits) -> Limits:
        """What a model may read and write: from its file, the database or a guess that says it is one."""
        names = {alias: entry for entry in self._entries() for alias in (entry.name, *entry.aliases)}
        entry = names.get(request.model)
        remote = next((one for one in self._rules.remotes if entry is not None and one.name == entry.name), None)
        return self._limits.of(request.model, entry, known_as=remote.remote.model if remote else None)

    def _profile(self, name: str) -> ProfileRules:
        profile = self._rules.profile(name)
        if profile is not None:
            return profile
        known = sorted(self._rules.profiles)
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"; did you mean {nearest[0]}?" if nearest else f"; there are {', '.join(known)}"
        raise NotFound(f"there is no profile {name!r}{hint}", profile=name, known=known)

    # Choosing

    def _choose(
        self,
        profile: ProfileRules,
        entries: Sequence[ModelInfo],
        prompt_tokens: int,
        capabilities: Sequence[str],
        asked: str,
    ) -> Routed:
        need = Need(
            capabilities=tuple(dict.fromkeys((*profile.capabilities, *capabilities))),
            prompt_tokens=prompt_tokens,
            answer_tokens=profile.options.get("max_tokens", self._settings.max_tokens),
        )
        candidates = list(self._candidates(profile, entries))
        passed = {one.name: why for one, _ in candidates if (why := self._why_not(one, need))}
        fitting = [pair for pair in candidates if pair[0].name not in passed]
        if not fitting:
            # Nothing holds the prompt and a whole answer: then a shorter answer is better than none.
            short = msgspec.structs.replace(need, answer_tokens=1)
            fitting = [pair for pair in candidates if not self._why_not(pair[0], short)]
        if not fitting:
            raise Unprocessable(
                f"no model will do for the {asked}: {_listed(passed) or 'none of its candidates is here'}",
                profile=profile.name,
                passed_over=[{"model": model, "reason": why} for model, why in passed.items()],
            )
        chosen, origin = fitting[0]
        if profile.prefer == "loaded":
            chosen, origin = next((pair for pair in fitting if pair[0].state == "loaded"), fitting[0])
        is_loaded = chosen.state == "loaded"
        for one, _ in fitting[: fitting.index((chosen, origin))]:
            passed.setdefault(one.name, f"{chosen.name} is loaded already")
        passed.pop(chosen.name, None)
        return Routed(
            model=chosen.name,
            profile=profile.name,
            reason=f"{asked}: {origin}{', loaded already' if is_loaded else ''}",
            is_loaded=is_loaded,
            passed_over=[RoutePassed(model=model, reason=why) for model, why in passed.items()],
            options=dict(profile.options),
        )

    def _candidates(self, profile: ProfileRules, entries: Sequence[ModelInfo]) -> Iterator[tuple[ModelInfo, str]]:
        """Models in the order of preference, each once, with what they are in the profile."""
        seen: set[str] = set()
        for patterns, size, origin in self._patterns(profile):
            found = [one for one in entries if any(matches(name, [patterns]) for name in (one.name, *one.aliases))]
            found.sort(key=lambda one: one.size_bytes if size == "smallest" else -one.size_bytes)
            for one in found:
                if one.name not in seen:
                    seen.add(one.name)
                    yield one, origin

    def _patterns(self, profile: ProfileRules) -> Iterator[tuple[str, str, str]]:
        """Patterns in order: the profile's own, those of its fallbacks, and the default model."""
        ahead, done = [(profile, "")], set[str]()
        while ahead:
            one, via = ahead.pop(0)
            done.add(one.name)
            for pattern in one.models:
                yield pattern, one.size, f"candidate {pattern}{via}"
            for fallback in one.fallbacks:
                other = self._rules.profiles.get(fallback)
                if other is None:
                    yield fallback, one.size, f"fallback {fallback}{via}"
                elif other.name not in done:
                    ahead.append((other, f" of the fallback {other.name}"))
        yield self._settings.default, profile.size, "the default model"

    def _why_not(self, entry: ModelInfo, need: Need) -> str:
        """Why a model will not do, "" where it will."""
        if entry.state == "unusable":
            return f"unusable: {entry.error}"
        lacking = [one for one in need.capabilities if one not in entry.capabilities]
        if lacking:
            return f"cannot {', '.join(lacking)}"
        window = self._window(entry)
        needed = need.prompt_tokens + min(need.answer_tokens, max(window - 1, 1))
        if need.prompt_tokens and needed > window:
            return (
                f"too small: {need.prompt_tokens} tokens of prompt and {need.answer_tokens} of answer,"
                f" its window has {window}"
            )
        return ""

    def _window(self, entry: ModelInfo) -> int:
        """Tokens of the window that the model has, or would be loaded with."""
        asked = self._rules.of(entry.name).context_tokens or self._settings.context_tokens
        known = entry.context_tokens or self._limits.of(entry.name, entry).context_tokens
        if entry.format == "remote":
            return asked or known
        return asked or min(known, self._settings.max_context_tokens)


def with_options(request: Any, options: dict[str, Any]) -> Any:
    """`request` with a profile's options where it names none itself."""
    names = [key for key in options if getattr(request, key, None) in (None, [])]
    return msgspec.structs.replace(request, **{key: options[key] for key in names if hasattr(request, key)})


def _listed(passed: dict[str, str]) -> str:
    return "; ".join(f"{model}: {why}" for model, why in passed.items())
