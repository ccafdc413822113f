"""Makes the conversations the demo model learns from, and held-out ones that share no prompt with them.

What is held out is decided by a hash, never by chance: one word in ten (in every list, and among made-up words), one
phrasing in ten of every fixed question, one pair of numbers in ten. The first phrasing of a question is always trained.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from demo_model import words as w

Split = Literal["train", "held_out"]
Message = dict[str, str]

# One item in HELD_OUT_EVERY is kept from training. Ten leaves every task both a dense training set and a fair check.
HELD_OUT_EVERY = 10


# Every list from which words to copy or spell are drawn.
LISTS = (w.NOUNS, w.NAMES, w.ANIMALS, w.FOODS, w.COLOURS, w.CITIES, w.JOBS, w.HOBBIES, w.ADJECTIVES, w.VERBS)

# The tasks that are still wrong most often when the others are right.
HARD_TASKS = frozenset({"spell", "uppercase", "add", "count", "recall", "recall_all", "greeting"})


def is_held_out(item: str) -> bool:
    """Whether this word, phrasing or number pair is kept from training; the same on every machine."""
    return zlib.crc32(item.encode()) % HELD_OUT_EVERY == 0


@dataclass(frozen=True, slots=True)
class Turn:
    """One question of the user and the one right answer; `task` names the format it belongs to."""

    task: str
    prompt: str
    answer: str


@dataclass(slots=True)
class Conversation:
    """A chat in which every answer is right: `system` may be empty, `facts` is what it says about the user."""

    system: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)

    def messages(self) -> list[Message]:
        """The chat as role and content pairs, answers included."""
        out = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            out.append({"role": "user", "content": turn.prompt})
            out.append({"role": "assistant", "content": turn.answer})
        return out


def render_facts(facts: dict[str, str]) -> str:
    """The lines a memory service puts into the system prompt: a heading and one `- key: value` line each."""
    return "\n".join([w.FACTS_HEADING, *(f"- {key}: {value}" for key, value in facts.items())])


def with_article(noun_phrase: str) -> str:
    """`owl` becomes `an owl`."""
    return f"{'an' if noun_phrase[0].lower() in 'aeiou' else 'a'} {noun_phrase}"


Phrasings = dict[str, list[tuple[str, str]]]


def fixed_questions() -> dict[str, Phrasings]:
    """Every question with a fixed answer: task -> topic -> (prompt, answer) pairs, the plainest phrasing first."""

    def ask(templates: Sequence[str], item: str, answer: str) -> list[tuple[str, str]]:
        return [(template.format(x=item), answer) for template in templates]

    olympus = {
        topic: [
            *(pair for noun in nouns[:1] for pair in ask(w.NOUN_TEMPLATES[:1], noun, answer)),
            *((question, answer) for question in questions),
            *(pair for noun in nouns for pair in ask(w.NOUN_TEMPLATES, noun, answer)),
        ]
        for topic, (answer, nouns, questions) in w.OLYMPUS.items()
    }
    both_ways = {one: other for pair in w.OPPOSITES for one, other in (pair, pair[::-1])}
    return {
        "greeting": {"greeting": [(prompt, w.HELLO) for prompt in w.GREETINGS]},
        "small_talk": {topic: [(q, answer) for q in questions] for topic, (answer, questions) in w.SMALL_TALK.items()},
        "olympus": olympus,
        "opposite": {
            one: ask(w.OPPOSITE_TEMPLATES, one, f"The opposite of {one} is {other}.")
            for one, other in both_ways.items()
        },
        "capital": {
            country: ask(w.CAPITAL_TEMPLATES, country, f"The capital of {country} is {city}.")
            for country, city in w.CAPITALS.items()
        },
    }


def _of_split(topics: Phrasings, split: Split) -> Phrasings:
    """The phrasings of one split; a topic that keeps none back is left out of the held-out split."""
    out: Phrasings = {}
    for topic, phrasings in topics.items():
        first = phrasings[0][0]
        kept = [p for p in phrasings if (p[0] != first and is_held_out(p[0])) == (split == "held_out")]
        if kept:
            out[topic] = kept
    return out


class TaskSampler:
    """Draws turns of every task from one split; all randomness comes from `rng`.

    `hard_tasks` multiplies the weights of HARD_TASKS. `compounds` is the share of made-up words that begin with one of
    `starts`, or with a listed word if there are none: some tokens would otherwise never be copied or spelled.
    """

    def __init__(
        self,
        rng: random.Random,
        split: Split,
        hard_tasks: float = 1.0,
        compounds: float = 0.0,
        starts: Sequence[str] = (),
    ) -> None:
        self.rng = rng
        self.split = split
        self._hard_tasks = hard_tasks
        self._compounds = compounds
        self._starts = starts
        self._questions = {task: _of_split(topics, split) for task, topics in fixed_questions().items()}
        # Weights are shares of turns in training: copying and spelling are hardest and come most often.
        self.tasks: dict[str, tuple[float, Callable[[Conversation], Turn]]] = {
            "greeting": (4, self.greeting),
            "small_talk": (6, self.small_talk),
            "olympus": (13, self.olympus),
            "repeat": (10, self.repeat),
            "spell": (11, self.spell),
            "uppercase": (8, self.uppercase),
            "add": (9, self.add),
            "count": (5, self.count),
            "opposite": (5, self.opposite),
            "capital": (6, self.capital),
            "remember": (8, self.remember),
            "recall": (13, self.recall),
            "recall_all": (3, self.recall_all),
            "story": (2, self.story),
            "out_of_scope": (7, self.out_of_scope),
        }

    # -- words -----------------------------------------------------------------------------------------------------

    def _keeps(self, item: str) -> bool:
        return is_held_out(item) == (self.split == "held_out")

    def pick(self, items: Sequence[str]) -> str:
        """One item of a list that belongs to this split (a list with none gives a made-up word instead)."""
        for _ in range(200):
            item = self.rng.choice(items)
            if self._keeps(item):
                return item
        return self.made_up_word()

    def made_up_word(self) -> str:
        """A pronounceable word of 3 to 9 letters that (most likely) is in no dictionary."""
        while self._compounds and self.rng.random() < self._compounds:
            start = self.rng.choice(self._starts) if self._starts else self.rng.choice(self.rng.choice(LISTS)).lower()
            word = start + self.rng.choice(w.SYLLABLES)
            if len(word) <= 9 and word.isalpha() and self._keeps(word):
                return word
        while True:
            word = "".join(self.rng.choice(w.SYLLABLES) for _ in range(self.rng.randint(1, 3)))
            if self.rng.random() < 0.3:
                at = self.rng.randrange(len(word))
                word = word[:at] + self.rng.choice("abcdefghijklmnopqrstuvwxyz") + word[at + 1 :]
            if 3 <= len(word) <= 9 and self._keeps(word):
                return word

    def word(self) -> str:
        """A lower-case word: from a list or made up."""
        if self.rng.random() < 0.45:
            return self.made_up_word()
        lists = (w.NOUNS, w.NOUNS, w.ANIMALS, w.FOODS, w.COLOURS, w.JOBS, w.HOBBIES, w.ADJECTIVES, w.VERBS)
        return self.pick(self.rng.choice(lists))

    def name(self) -> str:
        """A person's name: from the list or made up."""
        return self.pick(w.NAMES) if self.rng.random() < 0.6 else self.made_up_word().capitalize()

    def _casual(self, prompt: str) -> str:
        """Sometimes written carelessly: no capital at the start, no sign at the end."""
        if self.rng.random() < 0.15 and prompt[1:2].islower():
            prompt = prompt[0].lower() + prompt[1:]
        if self.rng.random() < 0.15 and prompt[-1] in ".?!" and len(prompt) > 3:
            prompt = prompt[:-1]
        return prompt

    # -- fixed answers ---------------------------------------------------------------------------------------------

    def _fixed(self, task: str) -> tuple[str, str]:
        """A question of this task and split, and its answer; topics are equally likely, first phrasings more so."""
        phrasings = self._questions[task][self.rng.choice(list(self._questions[task]))]
        first = self.split == "train" and self.rng.random() < 0.2
        return phrasings[0] if first else self.rng.choice(phrasings)

    def greeting(self, chat: Conversation) -> Turn:
        """A greeting; a known name is used."""
        prompt, answer = self._fixed("greeting")
        who = f", {chat.facts['name']}" if "name" in chat.facts else ""
        return Turn("greeting", self._casual(prompt), f"Hello{who}! {answer}")

    def small_talk(self, chat: Conversation) -> Turn:
        """Thanks, goodbye and questions about the model itself."""
        prompt, answer = self._fixed("small_talk")
        return Turn("small_talk", self._casual(prompt), answer)

    def olympus(self, chat: Conversation) -> Turn:
        """A question about Olympus, sometimes with a few words before it."""
        prompt, answer = self._fixed("olympus")
        opener = self.rng.choice(w.QUESTION_OPENERS) if self.rng.random() < 0.3 else ""
        return Turn("olympus", self._casual(opener + prompt), answer)

    def opposite(self, chat: Conversation) -> Turn:
        """The opposite of a known word, or the plain statement that it is not known."""
        if self.rng.random() < 0.2:
            word = self.word()
            prompt = self.rng.choice(w.OPPOSITE_TEMPLATES).format(x=word)
            return Turn("opposite_unknown", self._casual(prompt), f"I do not know the opposite of {word}.")
        prompt, answer = self._fixed("opposite")
        return Turn("opposite", self._casual(prompt), answer)

    def capital(self, chat: Conversation) -> Turn:
        """The capital of one of the known countries, or the plain statement that it is not known."""
        if self.rng.random() < 0.25:
            country = self.pick(w.OTHER_COUNTRIES) if self.rng.random() < 0.6 else self.made_up_word().capitalize()
            prompt = self.rng.choice(w.CAPITAL_TEMPLATES).format(x=country)
            return Turn("capital_unknown", self._casual(prompt), f"I do not know the capital of {country}.")
        prompt, answer = self._fixed("capital")
        return Turn("capital", self._casual(prompt), answer)

    def out_of_scope(self, chat: Conversation) -> Turn:
        """A question it cannot answer: it says so and lists what it can do."""
        templates = w.OUT_OF_SCOPE if self.split == "train" else w.OUT_OF_SCOPE_HELD_OUT
        noun = self.word() if self.rng.random() < 0.5 else self.pick(w.NOUNS)
        prompt = self.rng.choice(templates).format(
            n=noun,
            p=self.word(),
            a=self.pick(w.ANIMALS),
            c=self.pick(w.CITIES),
            j=self.pick(w.ADJECTIVES),
            v=self.pick(w.VERBS),
            m=self.name(),
            d=self.rng.randint(0, 99),
        )
        return Turn("out_of_scope", self._casual(prompt), w.FALLBACK)

    # -- letters and numbers ---------------------------------------------------------------------------------------

    def repeat(self, chat: Conversation) -> Turn:
        """One to five words said back."""
        return self._repeat(self.rng.choice((1, 2, 3, 3, 3, 4, 5)))

    def _repeat(self, words: int) -> Turn:
        text = " ".join(self.word() for _ in range(words))
        return Turn("repeat", self.rng.choice(w.REPEAT_TEMPLATES).format(x=text), f"You said: {text}")

    def _letters_word(self) -> str:
        word = self.word()
        return word.capitalize() if self.rng.random() < 0.1 else word

    def spell(self, chat: Conversation) -> Turn:
        """A word letter by letter."""
        word = self._letters_word()
        return Turn("spell", self._casual(self.rng.choice(w.SPELL_TEMPLATES)).format(x=word), "-".join(word))

    def uppercase(self, chat: Conversation) -> Turn:
        """A word in capital letters."""
        word = self._letters_word()
        return Turn("uppercase", self._casual(self.rng.choice(w.UPPERCASE_TEMPLATES)).format(x=word), word.upper())

    def add(self, chat: Conversation) -> Turn:
        """A sum of two numbers from 0 to 20; a pair is held out in both orders."""
        while True:
            a, b = self.rng.randint(0, 20), self.rng.randint(0, 20)
            if self._keeps(f"add {min(a, b)} {max(a, b)}"):
                break
        return Turn("add", self._casual(self.rng.choice(w.ADD_TEMPLATES).format(a=a, b=b)), f"{a} + {b} = {a + b}.")

    def count(self, chat: Conversation) -> Turn:
        """Counting up from 0..30 by at most eleven steps."""
        while True:
            a = self.rng.randint(0, 30)
            b = a + self.rng.randint(1, 11)
            if self._keeps(f"count {a} {b}"):
                break
        numbers = ", ".join(str(n) for n in range(a, b + 1))
        return Turn("count", self._casual(self.rng.choice(w.COUNT_TEMPLATES).format(a=a, b=b)), f"{numbers}.")

    def story(self, chat: Conversation) -> Turn:
        """The one story, about whoever the user names."""
        choice = self.rng.random()
        if choice < 0.12:
            prompt, first, it = self.rng.choice(w.STORY_PLAIN), "a fox", "the fox"
        elif choice < 0.3:
            it = self.name()
            prompt, first = self.rng.choice(w.STORY_TEMPLATES).format(x=it), f"someone called {it}"
        else:
            subject = self.pick(w.ANIMALS) if self.rng.random() < 0.6 else self.word()
            if self.rng.random() < 0.25:
                subject = f"{self.pick(w.ADJECTIVES)} {subject}"
            first, it = with_article(subject), f"the {subject}"
            prompt = self.rng.choice(w.STORY_TEMPLATES).format(x=first)
        return Turn("story", self._casual(prompt), w.STORY.format(first=first, it=it))

    # -- facts about the user --------------------------------------------------------------------------------------

    def fact(self) -> tuple[str, str]:
        """A key such as `favourite colour` and a value for it; values are often not of the expected kind."""
        chosen = self.rng.random()
        key = (
            "name"
            if chosen < 0.2
            else self.rng.choice(list(w.FACT_KEYS))
            if chosen < 0.8
            else f"favourite {self.word()}"
        )
        lists = {
            "colours": w.COLOURS,
            "foods": w.FOODS,
            "animals": w.ANIMALS,
            "cities": w.CITIES,
            "jobs": w.JOBS,
            "hobbies": w.HOBBIES,
            "nouns": w.NOUNS,
            "countries": list(w.CAPITALS),
        }
        kind = w.FACT_KEYS.get(key, "nouns")
        chosen = self.rng.random()
        if kind == "names":
            value = self.name() if chosen < 0.85 else f"{self.name()} {self.name()}"
        elif kind == "numbers" and chosen < 0.8:
            value = str(self.rng.randint(0, 99))
        elif kind in lists and chosen < 0.5:
            value = self.pick(lists[kind])
        elif chosen < 0.65:
            value = f"{self.pick(w.ADJECTIVES)} {self.word()}"
        else:
            value = self.word() if chosen < 0.85 else self.word().capitalize()
        return key, value

    def facts(self, count: int) -> dict[str, str]:
        """`count` facts with different keys."""
        out: dict[str, str] = {}
        while len(out) < count:
            key, value = self.fact()
            out.setdefault(key, value)
        return out

    def _tell(self, key: str, value: str) -> str:
        if key == "name" and self.rng.random() < 0.35:
            return self.rng.choice(w.TELL_NAME_TEMPLATES).format(v=value)
        if key == "city" and self.rng.random() < 0.5:
            return f"I live in {value}."
        return self.rng.choice(w.TELL_TEMPLATES).format(k=key, v=value)

    def _ask(self, key: str) -> str:
        if key == "name" and self.rng.random() < 0.2:
            return self.rng.choice(w.ASK_NAME_TEMPLATES)
        if key == "city" and self.rng.random() < 0.4:
            return self.rng.choice(w.ASK_CITY_TEMPLATES)
        return self.rng.choice(w.ASK_TEMPLATES).format(k=key)

    def remember(self, chat: Conversation) -> Turn:
        """The user states a fact; it is confirmed, and known for the rest of the chat."""
        key, value = self.fact()
        if key in chat.facts and self.rng.random() < 0.9:
            key, value = self.fact()
        chat.facts[key] = value
        prompt = self._casual(self._tell(key, value))
        if key == "name":
            return Turn("remember", prompt, f"Nice to meet you, {value}.")
        return Turn("remember", prompt, f"Noted: your {key} is {value}.")

    def recall(self, chat: Conversation) -> Turn:
        """The user asks for a fact that was given, or for one that was not."""
        if self.rng.random() < 0.1:
            key, value = self.fact()
            chat.facts[key] = value
            prompt = f"{self.rng.choice(w.TELL_TEMPLATES[:2]).format(k=key, v=value)} {self._ask(key)}"
            return Turn("recall", self._casual(prompt), f"Your {key} is {value}.")
        if chat.facts and self.rng.random() < 0.8:
            key = self.rng.choice(list(chat.facts))
            return Turn("recall", self._casual(self._ask(key)), f"Your {key} is {chat.facts[key]}.")
        key = self.fact()[0]
        prompt = self._casual(self._ask(key))
        if key in chat.facts:
            return Turn("recall", prompt, f"Your {key} is {chat.facts[key]}.")
        return Turn("recall_unknown", prompt, f"I do not know your {key} yet. Tell me: My {key} is ...")

    def recall_all(self, chat: Conversation) -> Turn:
        """The user asks for everything known, in the order it was told."""
        known = " ".join(f"Your {key} is {value}." for key, value in list(chat.facts.items())[:6])
        answer = known or "I do not know anything about you yet."
        return Turn("recall_all", self._casual(self.rng.choice(w.ASK_ALL_TEMPLATES)), answer)

    # -- whole chats -----------------------------------------------------------------------------------------------

    def system(self, chance_of_facts: float) -> Conversation:
        """An empty chat with no system prompt, one to be ignored, or one that holds facts."""
        chosen = self.rng.random()
        if chosen < chance_of_facts:
            facts = self.facts(self.rng.choice((1, 2, 2, 3, 3, 4, 5, 6)))
            text = render_facts(facts)
            if self.rng.random() < 0.35:
                text = f"{self.rng.choice(w.SYSTEM_PROMPTS)}{self.rng.choice((chr(10), chr(10) * 2))}{text}"
            return Conversation(system=text, facts=facts)
        if chosen < chance_of_facts + 0.12:
            return Conversation(system=self.rng.choice(w.SYSTEM_PROMPTS))
        return Conversation()

    def turn(self, chat: Conversation) -> Turn:
        """One turn of a task drawn by weight, appended to the chat."""
        names = list(self.tasks)
        weights = [self.tasks[name][0] * (self._hard_tasks if name in HARD_TASKS else 1.0) for name in names]
        turn = self.tasks[self.rng.choices(names, weights)[0]][1](chat)
        chat.turns.append(turn)
        return turn

    def long_repeat(self, length: Callable[[Conversation], int], max_tokens: int) -> Conversation:
        """A chat of one turn: ten to thirty words said back. Nothing teaches copying sooner."""
        while True:
            chat = Conversation(turns=[self._repeat(self.rng.randint(10, 30))])
            if length(chat) <= max_tokens:
                return chat

    def conversation(self, length: Callable[[Conversation], int], max_tokens: int) -> Conversation:
        """A chat of one or many turns that `length` measures as at most `max_tokens` tokens."""
        chat = self.system(chance_of_facts=0.4)
        budget = 0 if self.rng.random() < 0.3 else self.rng.randint(40, max_tokens)
        while True:
            known = dict(chat.facts)
            self.turn(chat)
            size = length(chat)
            if size > max_tokens:
                chat.turns.pop()
                chat.facts = known
            if size >= budget:
                if chat.turns:
                    return chat
                chat = self.system(chance_of_facts=0.0)


def held_out_checks(seed: int, rows: int) -> dict[str, list[Conversation]]:
    """For every task `rows` held-out chats whose last answer is to be produced, by the name of the task."""
    sampler = TaskSampler(random.Random(f"held-out {seed}"), "held_out")
    wanted = (
        "greeting",
        "small_talk",
        "olympus",
        "repeat",
        "spell",
        "uppercase",
        "add",
        "count",
        "opposite",
        "capital",
        "remember",
        "recall_in_chat",
        "recall_from_system",
        "recall_unknown",
        "recall_all",
        "story",
        "out_of_scope",
    )
    out: dict[str, list[Conversation]] = {}
    for task in wanted:
        chats: list[Conversation] = []
        while len(chats) < rows:
            chats.append(_held_out_chat(sampler, task))
        out[task] = chats
    return out


def _held_out_chat(sampler: TaskSampler, task: str) -> Conversation:
    """One chat ending in a turn of `task`; recall is split by where the fact stands."""
    while True:
        chat = Conversation()
        if task == "recall_from_system":
            facts = sampler.facts(sampler.rng.randint(1, 5))
            chat = Conversation(system=render_facts(facts), facts=facts)
        elif task == "recall_all":
            facts = sampler.facts(sampler.rng.randint(1, 4))
            chat = Conversation(system=render_facts(facts), facts=facts)
        elif task == "recall_in_chat":
            for _ in range(sampler.rng.randint(1, 2)):
                chat.turns.append(sampler.remember(chat))
        base = "recall" if task.startswith("recall") and task != "recall_all" else task
        turn = sampler.tasks[base][1](chat)
        if turn.task == (task if task == "recall_unknown" else base):
            chat.turns.append(turn)
            return chat
