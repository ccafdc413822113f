"""The demo model's tokenizer and chat template: byte-level BPE that llama.cpp can reproduce exactly."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from demo_model import words as w
from demo_model.tasks import Conversation, TaskSampler

PAD = "<|pad|>"
END = "<|end|>"
ASSISTANT = "<|assistant|>"
# Ids 0 to 4 in this order.
SPECIALS = (PAD, END, "<|system|>", "<|user|>", ASSISTANT)

# How byte-level BPE writes the space before a word.
WORD_BOUNDARY = "Ġ"

# The name under which llama.cpp knows the split used here: every digit alone, then the pattern of GPT-2.
LLAMA_CPP_PRE = "smollm"

# One line without any newline, so that every renderer (with or without trim_blocks) gives the same text.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(vocab_size: int, seed: int) -> Tokenizer:
    """A byte-level BPE tokenizer of `vocab_size` entries, trained on what the model will read and say.

    Slots of the templates are left empty and each listed word is seen once only: fixed sentences become few, long
    tokens, while the words that are to be copied and spelled are cut into short ones that occur in many words.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in SPECIALS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_text(seed), trainer)
    return tokenizer


def _tokenizer_text(seed: int) -> Iterator[str]:
    """Fixed sentences and bare templates often, single words once."""
    fixed = [
        w.FALLBACK,
        w.HELLO,
        w.STORY,
        w.FACTS_HEADING,
        *w.GREETINGS,
        *w.SYSTEM_PROMPTS,
        "Nice to meet you, ",
        "I do not know your",
        " yet. Tell me: My",
        " is ...",
        "I do not know anything about you yet.",
        "You said:",
        "Noted: your",
        " is",
        "I do not know the opposite of",
        "I do not know the capital of",
        "Your",
    ]
    for answer, questions in w.SMALL_TALK.values():
        fixed += [answer, *questions]
    for answer, nouns, questions in w.OLYMPUS.values():
        fixed += [answer, *(f" {noun}" for noun in nouns), *questions]
    for templates in (
        w.NOUN_TEMPLATES,
        w.OPPOSITE_TEMPLATES,
        w.CAPITAL_TEMPLATES,
        w.TELL_TEMPLATES,
        w.ASK_TEMPLATES,
        w.TELL_NAME_TEMPLATES,
        w.ASK_NAME_TEMPLATES,
        w.ASK_CITY_TEMPLATES,
        w.ASK_ALL_TEMPLATES,
        w.REPEAT_TEMPLATES,
        w.SPELL_TEMPLATES,
        w.UPPERCASE_TEMPLATES,
        w.ADD_TEMPLATES,
        w.COUNT_TEMPLATES,
        w.STORY_TEMPLATES,
        w.STORY_PLAIN,
        w.OUT_OF_SCOPE,
        w.QUESTION_OPENERS,
    ):
        fixed += [_without_slots(template) for template in templates]
    fixed += [f" {key}" for key in w.FACT_KEYS]
    for text in fixed:
        yield from (text, text, text, text)
    # The two longest answers: repeated so that they become few tokens, and so cheap to learn and quick to say.
    yield from (w.STORY, w.FALLBACK) * 4

    for country, city in w.CAPITALS.items():
        yield f" {country} {city} {country} {city}"
    for one, other in w.OPPOSITES:
        yield f" {one} {other} {one} {other}"
    lists = (w.NOUNS, w.ANIMALS, w.FOODS, w.COLOURS, w.JOBS, w.HOBBIES, w.ADJECTIVES, w.VERBS, w.NAMES, w.CITIES)
    sampler = TaskSampler(random.Random(f"tokenizer {seed}"), "train")
    for items in lists:
        yield "".join(f" {sampler.pick(items)}" for _ in items)
    yield "".join(f" {sampler.made_up_word()}" for _ in range(600))


def _without_slots(template: str) -> str:
    out, depth = "", 0
    for char in template:
        depth += (char == "{") - (char == "}")
        out += char if depth == 0 and char != "}" else ""
    return out


class ChatEncoder:
    """Turns chats into token ids, and weighs those that the model has to say itself."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._end = SPECIALS.index(END)
        self._roles = {role: SPECIALS.index(f"<|{role}|>") for role in ("system", "user", "assistant")}
        self._known: dict[str, list[int]] = {}

    def _text(self, text: str) -> list[int]:
        if text not in self._known:
            if len(self._known) > 20_000:
                self._known.clear()
            self._known[text] = list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        return self._known[text]

    def encode(self, chat: Conversation) -> tuple[list[int], list[float]]:
        """Token ids of the whole chat, and the weight of each in the loss.

        Equal to rendering CHAT_TEMPLATE and tokenizing the text, since special tokens cut the text apart. Only answers
        (with the END after them) count. Every token of an answer of n tokens weighs 1 / sqrt(n): otherwise the story,
        soon known by heart, drowns the short answers that have to be copied from the prompt.
        """
        ids: list[int] = []
        weights: list[float] = []
        for message in chat.messages():
            text = self._text(message["content"])
            ids += [self._roles[message["role"]], *text, self._end]
            said = len(text) + 1
            weights += [0.0, *([said**-0.5 if message["role"] == "assistant" else 0.0] * said)]
        return ids, weights

    def length(self, chat: Conversation) -> int:
        """Tokens of the whole chat."""
        return sum(len(self._text(message["content"])) + 2 for message in chat.messages())

    def word_starts(self) -> list[str]:
        """The tokens that stand for a whole short word or for the beginning of one, as plain text."""
        texts = (text[1:] for text in self._tokenizer.get_vocab() if text.startswith(WORD_BOUNDARY))
        return sorted(text for text in texts if text.isalpha() and text.isascii() and 2 <= len(text) <= 7)
