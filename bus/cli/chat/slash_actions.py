"""What slash commands mean inside a chat, where they mean more than the sub-command of that name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from textwrap import indent
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from bus import sampling
from bus.cli.chat.choices import TOOLS, Choices, Layer, resolved, settle, with_profile
from bus.cli.chat.slash_words import first_word, words
from bus.cli.chat.wording import going_on
from bus.cli.connection import check_connected
from bus.cli.failures import UsageError
from bus.cli.model_names import check_model, in_use
from bus.cli.options import changed_options, option_line, option_lines
from bus.cli.output import one_line, plural, printable, table, to_json
from bus.cli.session_command import session_named
from bus.client import Client
from bus.near_names import hint
from bus.project_file import FILE_TOOLS, MEMORY_TOOLS, ProjectError
from bus.settings import Settings
from schemas.bodies.model import ModelList, Models
from schemas.bodies.model_trials import ProfileList, Profiles

if TYPE_CHECKING:
    from bus.cli.chat.conversation import Conversation
    from bus.cli.chat.events import ContextUsed
    from bus.templates import Rendered

# What `/memory on` gives of memory's tools: a model that may forget is a choice of its own (/tools on forget).
_USUAL_TOOLS: Final = tuple(name for name in Choices().tools if name in MEMORY_TOOLS)

# Parts of memory that can be switched one by one.
_PARTS: Final = ("prompt", "context", "tools")

# Who said so, of what was changed by a slash command.
_HERE: Final = "said in this chat"


class Voice(Protocol):
    """The front end's side of a slash command. is_plain: it knows lines alone, and no keys."""

    @property
    def is_plain(self) -> bool: ...

    def say(self, text: str) -> None:
        """Show one or more whole lines; they are printable already."""

    async def ask(self, question: str) -> str:
        """One line that the person types; "" at the end of input, or where nobody can be asked."""


class Outcome(NamedTuple):
    """What the chat does next: leave, ask `question` as if it had been typed, or ask the last one again."""

    is_quit: bool = False
    question: str | None = None
    is_retry: bool = False


class At(NamedTuple):
    """Where a slash command acts. sub runs an `olympus` sub-command by its words, and gives its exit code."""

    conversation: Conversation
    settings: Settings
    voice: Voice
    sub: Callable[[list[str]], Awaitable[int]]

    @property
    def client(self) -> Client:
        """The chat's own connection. Raises Unreachable while the bus is away."""
        check_connected(self.conversation.client)
        return self.conversation.client

    def choose(self, by: str = _HERE, **changes: Any) -> None:
        """Change choices of this chat from the next question on; they count more than what they were made of.

        by: who says so, for people.
        """
        choices = self.conversation.choices
        before = next((layer for layer in choices.layers if layer.name == _HERE), Layer(name=_HERE))
        values, origins = dict(changes), {name: by for name in changes if name != "options"}
        if "options" in changes:
            ours = before.values.get("options", {})
            values["options"] = {
                name: value
                for name, value in changes["options"].items()
                if name in ours or value != choices.options.get(name)
            }
            fresh = (name for name, value in values["options"].items() if value != choices.options.get(name))
            origins |= {f"options.{name}": by for name in fresh}
        layer = Layer(name=_HERE, values={**before.values, **values}, origins={**before.origins, **origins})
        others = tuple(each for each in choices.layers if each.name != _HERE)
        self.conversation.choose(**changes, origins={**choices.origins, **origins}, layers=(layer, *others))


Act = Callable[[At, str], Awaitable[Outcome]]


class Here(NamedTuple):
    """One thing that a chat does itself: its arguments and its line in `/help`, and what it does with the text after it."""

    usage: str
    help: str
    act: Act


# Memory -----------------------------------------------------------------------------------------------------------


async def memory_state(at: At, text: str) -> Outcome:
    """What of memory takes part in this chat."""
    choices = at.conversation.choices
    tools = [name for name in choices.tools if name in MEMORY_TOOLS]
    rows = [
        (
            "prompt",
            _on(choices.memory_prompt),
            f"what is known of you, in the system prompt, up to {choices.prompt_tokens} tokens",
        ),
        ("context", _on(choices.memory_context), f"what fits each question, up to {choices.context_tokens} tokens"),
        ("tools", _on(bool(tools)), ", ".join(tools) or "what the model itself may look up and keep"),
    ]
    at.voice.say("\n".join(table(("MEMORY", "", "WHAT"), rows)))
    at.voice.say("/memory on|off [prompt|context|tools] switches them, /help memory lists the rest")
    return Outcome()


async def memory_on(at: At, text: str) -> Outcome:
    """Switch parts of memory on."""
    return await _switch_memory(at, text, is_on=True)


async def memory_off(at: At, text: str) -> Outcome:
    """Switch parts of memory off."""
    return await _switch_memory(at, text, is_on=False)


async def _switch_memory(at: At, text: str, *, is_on: bool) -> Outcome:
    parts = words(text) or list(_PARTS)
    for part in parts:
        if part not in _PARTS:
            raise UsageError(f"memory has no part '{part}'; {hint(part, _PARTS)}")
    tools = at.conversation.choices.tools
    changes: dict[str, Any] = {f"memory_{part}": is_on for part in parts if part != "tools"}
    if "tools" in parts:
        others = tuple(name for name in tools if name not in MEMORY_TOOLS)
        changes["tools"] = (*dict.fromkeys((*_USUAL_TOOLS, *tools)),) if is_on else others
    at.choose(**changes)
    at.voice.say(f"memory {', '.join(parts)}: {_on(is_on)}, from the next question on")
    return Outcome()


async def memory_add(at: At, text: str) -> Outcome:
    """Keep a text as it stands, with its lines; among options it is read word by word."""
    given = words(text)
    if len(given) > 1 and not any(word.startswith("-") for word in given):
        given = [text]
    await at.sub(["memory", "add", *given])
    return Outcome()


async def memory_list(at: At, text: str) -> Outcome:
    """What is known of the person and the newest memories; with options, as the sub-command takes them."""
    if text:
        await at.sub(["memory", "list", *words(text)])
        return Outcome()
    check_connected(at.conversation.client)
    at.voice.say("facts:")
    await at.sub(["memory", "list", "--fact"])
    at.voice.say("memories, the newest first:")
    await at.sub(["memory", "list", "--sort", "newest", "--limit", "20"])
    return Outcome()


async def memory_shown(at: At, text: str) -> Outcome:
    """What memory put before the model with the last question."""
    conversation = at.conversation
    shown = (("in the system prompt", conversation.last_addition), ("before the question", conversation.last_block))
    for where, said in shown:
        if said:
            at.voice.say(f"{where}:\n{indent(printable(said), '  ')}")
    used = conversation.last_context
    if used is not None and (used.included or used.left_out):
        at.voice.say("\n".join(_account_of(used)))
    elif not any(said for _, said in shown):
        at.voice.say("memory put nothing before the model with the last question; /memory tells what is on")
    return Outcome()


def _account_of(used: ContextUsed) -> list[str]:
    """What was found, and what of it had no room."""
    rows = [
        (part.part, "used" if is_used else "left out", str(part.tokens), printable(part.id), one_line(part.why, 60))
        for parts, is_used in ((used.included, True), (used.left_out, False))
        for part in parts
    ]
    degraded = f"; incomplete: {printable(used.degraded)}" if used.degraded else ""
    return [
        *table(("PART", "", "TOKENS", "FROM", "WHY"), rows),
        f"{plural(used.tokens, 'token')}, counted by {printable(used.counted_by)}{degraded}",
    ]


# Models -----------------------------------------------------------------------------------------------------------


async def model_use(at: At, text: str) -> Outcome:
    """Let a model or a routing profile answer from now on; `--save` keeps it for the chats to come."""
    given = [word for word in words(text) if word != "--save"]
    if len(given) != 1:
        raise UsageError("/model use NAME [--save]: which model, or which routing profile?")
    name = resolved(at.conversation.choices, given[0])
    await check_model(at.client, name)
    at.choose(model=name)
    if "--save" in words(text):
        await at.sub(["models", "use", name])
    at.voice.say(f"{printable(name)} answers from the next question on")
    return Outcome()


async def compare(at: At, text: str) -> Outcome:
    """One question to several models. The question needs no quotes where models follow it; without one, the last."""
    given = words(text)
    if "-" in given:
        raise UsageError("'-' reads stdin, which is the keyboard here: give the question itself")
    if not any(word.startswith("--") for word in given):
        models: Models = await at.client.request("model.list", ModelList())
        listed: ProfileList = await at.client.request("model.profiles", Profiles())
        names = {each for one in models.models for each in (one.name, *one.aliases)}
        profiles = {one.name for one in listed.profiles}
        given = _compared(given, names, profiles, at.conversation.last_question)
    await at.sub(["compare", *(["--plain"] if at.voice.is_plain else []), *given])
    return Outcome()


def _compared(given: list[str], models: set[str], profiles: set[str], last_question: str) -> list[str]:
    """The question in one word and the models behind it. Raises UsageError where it cannot be told which are which."""
    # Profiles second: "fast" and "code" are words of questions, too.
    for names in (models, models | profiles):
        count = len(given)
        while count and given[count - 1] in names:
            count -= 1
        question = " ".join(given[:count]) or last_question
        if len(given) - count > 1 and question:
            return [question, *given[count:]]
    if given and " " in given[0]:
        # In quotes: the sub-command says which of the others is no model.
        return given
    wrong = f"; {given[-1]!r} is none, {hint(given[-1], sorted(models))}" if given and count == len(given) else ""
    raise UsageError(printable(f"/compare [QUESTION] MODEL MODEL ...: two to eight models at the end{wrong}"))


# Projects ---------------------------------------------------------------------------------------------------------


async def project_use(at: At, text: str) -> Outcome:
    """Take another profile for this chat; `none` takes none."""
    is_saved = "--save" in words(text)
    given = [word for word in words(text) if word != "--save"]
    if len(given) != 1:
        # Without a name the sub-command lists the profiles.
        await at.sub(["project", "use", *given])
        return Outcome()
    name = given[0]
    try:
        choices = with_profile(at.conversation.choices, name, at.settings)
    except ProjectError as error:
        raise UsageError(str(error)) from error
    settled = await settle(choices, at.client)
    at.conversation.choose(**{field: getattr(settled, field) for field in settled.__struct_fields__})
    for note in settled.notes[len(choices.notes) :]:
        at.voice.say(printable(note))
    answers = printable(settled.model) if settled.model else "the default model"
    at.voice.say(f"profile {printable(name)} counts from the next question on; {answers} answers")
    if is_saved:
        await at.sub(["project", "use", name])
    return Outcome()


async def project_shown(at: At, text: str) -> Outcome:
    """What this chat runs with by now; with a folder or options, what a chat there would begin with."""
    from bus.cli.project import about, show_lines

    if text:
        await at.sub(["project", "show", *words(text)])
        return Outcome()
    choices = at.conversation.choices
    at.voice.say("\n".join([*show_lines(choices), "", *about(choices.project)]))
    return Outcome()


# Templates --------------------------------------------------------------------------------------------------------


async def template_use(at: At, text: str) -> Outcome:
    """Fill a template, ask for what is missing, and put it as the next question."""
    from bus.cli.chat.template_use import filled, question, values_of
    from bus.templates import TemplateError, Variable, shelf_for

    name, rest = first_word(text)
    if not name:
        raise UsageError("/template use NAME [key=value ...]: which template? /template list shows them")

    async def ask(variable: Variable, problem: str) -> str | None:
        if problem:
            at.voice.say(printable(problem))
        return await at.voice.ask(printable(question(variable))) or None

    try:
        template = shelf_for(at.settings, at.conversation.choices.project).get(name)
        if notice := template.notice():
            at.voice.say(printable(notice))
        rendered = await filled(template, values_of(words(rest)), ask)
    except TemplateError as error:
        raise UsageError(printable(str(error))) from error
    if rendered is None:
        at.voice.say("given up: nothing was asked")
        return Outcome()
    changed = _take_over(at, rendered, name)
    if changed:
        at.voice.say(f"the template sets {', '.join(changed)} of this chat")
    return Outcome(question=rendered.prompt)


def _take_over(at: At, rendered: Rendered, name: str) -> list[str]:
    """What the template asks for beside its question counts from now on, less than what the person said; what changed."""
    choices = at.conversation.choices

    def is_free(field: str) -> bool:
        origin = choices.origins.get(field, "")
        return origin != _HERE and not origin.startswith("flag")

    options = {option: value for option, value in rendered.options.items() if is_free(f"options.{option}")}
    wanted = {"model": rendered.model, "system": rendered.system, "options": {**choices.options, **options}}
    changes = {
        field: value
        for field, value in wanted.items()
        if value is not None and value != getattr(choices, field) and (field == "options" or is_free(field))
    }
    if changes:
        at.choose(f"template {name}", **changes)
    return list(changes)


# Sessions ---------------------------------------------------------------------------------------------------------


async def session_state(at: At, text: str) -> Outcome:
    """Which session this is."""
    count = len(at.conversation.messages)
    at.voice.say(f"{printable(at.conversation.session_id)}, {plural(count, 'message')}; /session list shows the others")
    return Outcome()


async def session_new(at: At, text: str) -> Outcome:
    """Begin a session anew, with nothing said yet."""
    at.voice.say(f"session {printable(at.conversation.new_session())} begins")
    return Outcome()


async def session_resume(at: At, text: str) -> Outcome:
    """Go on with an earlier session, by its id or the beginning of it; without one, the last."""
    wanted = text.strip()
    if wanted:
        session_id = await session_named(at.client, wanted)
    else:
        sessions = await at.conversation.sessions()
        others = [one.session_id for one in sessions if one.session_id != at.conversation.session_id]
        if not others:
            raise UsageError("there is no earlier session to go on with")
        session_id = others[0]
    resumed = await at.conversation.resume(session_id)
    at.voice.say("\n".join(printable(talk.text) for talk in going_on(resumed)))
    return Outcome()


async def session_bridge(at: At, text: str) -> Outcome:
    """Take what earlier sessions say about something into this one."""
    bridge = await at.conversation.bridge(text.strip() or None)
    if not bridge.text:
        at.voice.say("earlier sessions hold nothing about that")
        return Outcome()
    at.voice.say(printable(bridge.text))
    at.voice.say(
        f"{plural(bridge.tokens, 'token')} from {plural(len(bridge.sessions), 'session')} go in with the next question"
    )
    return Outcome()


# Feedback, routing, options, tools --------------------------------------------------------------------------------


async def feedback(at: At, text: str) -> Outcome:
    """Say what the last answer was worth; the text needs no quotes."""
    verdict, rest = first_word(text)
    if not verdict:
        raise UsageError("/feedback good|bad [why], or /feedback fix TEXT: what should have been answered")
    if verdict not in ("good", "bad", "fix"):
        raise UsageError(f"feedback is good, bad or fix TEXT, not '{verdict}'; {hint(verdict, ('good', 'bad', 'fix'))}")
    if not at.conversation.last_reply_id:
        raise UsageError("the last question has no whole answer that feedback could be about")
    # Behind "--" a text may begin with a dash.
    await at.sub(["feedback", verdict, "--", *([rest] if rest else [])])
    return Outcome()


async def route(at: At, text: str) -> Outcome:
    """Which model answers here and why; with a profile or options, as the sub-command takes them."""
    if text:
        await at.sub(["route", *words(text)])
        return Outcome()
    choices = at.conversation.choices
    origin = choices.origins.get("model", "the default")
    model, why = await in_use(at.client, choices.model)
    at.voice.say(f"{printable(model or 'no model')} answers: {printable(why)} ({printable(origin)})")
    return Outcome()


async def options(at: At, text: str) -> Outcome:
    """Show or set sampling options of this chat; `--save` keeps them for the chats to come."""
    given = words(text)
    is_saved = "--save" in given
    given = [word for word in given if word != "--save"]
    choices = at.conversation.choices
    if not given:
        at.voice.say("\n".join(option_lines(choices.options, choices.origins)))
        return Outcome()
    try:
        changed = changed_options(choices.options, given)
    except sampling.OptionError as error:
        raise UsageError(str(error)) from error
    if changed is None:
        at.voice.say(option_line(given[0], choices.options))
        return Outcome()
    at.choose(options=changed)
    said = ", ".join(f"{name}={to_json(value)}" for name, value in changed.items())
    at.voice.say(f"options from the next question on: {printable(said) or 'those of the model'}")
    if is_saved:
        await at.sub(["options", *given])
    return Outcome()


async def tools(at: At, text: str) -> Outcome:
    """Show which tools the model may use, or give and take some."""
    switch, *names = words(text) or [""]
    now = at.conversation.choices.tools
    if not switch:
        at.voice.say("\n".join(table(("TOOL", ""), [(name, _on(name in now)) for name in TOOLS])))
        return Outcome()
    if switch not in ("on", "off"):
        raise UsageError(f"/tools on|off [NAME ...], not '{printable(switch)}'")
    for name in names:
        if name not in TOOLS:
            raise UsageError(f"there is no tool '{name}'; {hint(name, TOOLS)}")
    if switch == "off":
        wanted = set(now) - set(names or TOOLS)
    else:
        wanted = {*now, *(names or _unasked_tools(at.conversation.choices))}
    at.choose(tools=tuple(name for name in TOOLS if name in wanted))
    at.voice.say(f"tools from the next question on: {', '.join(at.conversation.choices.tools) or 'none'}")
    return Outcome()


def _unasked_tools(choices: Choices) -> tuple[str, ...]:
    """What `/tools on` gives without names: forgetting has to be named, and reading files needs a project."""
    return (*_USUAL_TOOLS, *(FILE_TOOLS if choices.project is not None else ()))


def _on(is_on: bool) -> str:
    return "on" if is_on else "off"
