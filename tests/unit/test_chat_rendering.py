"""How an answer is cut into blocks, drawn, and kept at the end of the screen."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.cli.chat.blocks import Block, Splitter
from bus.cli.chat.events import (
    Answered,
    Away,
    Back,
    ContextUsed,
    Event,
    Failed,
    Notice,
    Stopped,
    Text,
    ToolAnswered,
    ToolCalled,
)
from bus.cli.chat.region import Line, Region
from bus.cli.chat.rendering import AnswerView, Painter
from bus.cli.chat.status_bar import Status, fitted
from bus.cli.output import columns_of
from schemas.bodies.model import Generation, Timings, Usage
from schemas.bodies.sessions import ContextPart

PAGE = """\
# Title
A paragraph with **bold
words** in it.
- one
- two
  goes on

  ```py
  x = 1
  ```
- three

1. first
2. second
   - nested

> a quote
> of two lines

```python
def f():
    return '''text

over lines'''
```
| a | b |
|---|---|
| 1 | 2 |

Underlined
==========
It was
1984. That year
***
~~~
tildes
~~~
"""


def blocks(text: str, size: int) -> list[Block]:
    """The blocks of a text that comes in pieces of `size` characters, code joined."""
    splitter = Splitter()
    found: list[Block] = []
    for at in range(0, len(text), size):
        found += splitter.feed(text[at : at + size])
        splitter.open(1000)
    found += splitter.finish()
    joined: list[Block] = []
    for block in found:
        if block.is_code and block.before and joined[-1].is_code:
            joined[-1] = Block(
                text=f"{joined[-1].text}\n{block.text}",
                is_code=True,
                language=block.language,
                before=joined[-1].before,
                has_gap=joined[-1].has_gap,
            )
        else:
            joined.append(block)
    return joined


def generation(**changes: object) -> Generation:
    """An answer of 57 tokens."""
    timings = Timings(prompt_s=0.1, generate_s=1.0, first_token_s=0.25, tokens_per_s=40.04)
    fields = {"model": "tiny", "text": "", "token_ids": [], "finish_reason": "stop", "timings": timings}
    return Generation(**{**fields, "usage": Usage(prompt_tokens=9, completion_tokens=57), **changes})  # type: ignore[arg-type]


def plain(line: Line) -> str:
    """A line without its colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", line.text)


def drawn(*events: Event, columns: int = 60, rows: int = 24) -> list[str]:
    """The lines of an answer after all these events, finished and live ones."""
    view = AnswerView(Painter(columns), "tiny", 0.0)
    for event in events:
        view.take(event, 0.0)
    finished, live = view.frame(rows, 2.0)
    return [plain(line) for line in (*finished, *live)]


# Blocks


def test_a_page_is_cut_where_its_blocks_end() -> None:
    """Headings, paragraphs, single items, quotes, fences and tables; a year at a line's beginning is no list."""
    found = blocks(PAGE, 7)

    assert [block.text.split("\n")[0] for block in found] == [
        "# Title",
        "A paragraph with **bold",
        "- one",
        "- two",
        "- three",
        "1. first",
        "2. second",
        "> a quote",
        "def f():",
        "| a | b |",
        "Underlined",
        "It was",
        "***",
        "tildes",
    ]
    assert [block.language for block in found if block.is_code] == ["python", ""]
    assert found[3].text == "- two\n  goes on\n\n  ```py\n  x = 1\n  ```"


@pytest.mark.parametrize("size", [1, 2, 3, 11, 1000])
def test_blocks_do_not_depend_on_the_pieces(size: int) -> None:
    """However the text is cut on its way, the same blocks come out, with the same gaps."""
    assert blocks(PAGE, size) == blocks(PAGE, 7)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab -*#`~>|1.\n", max_size=120), st.integers(1, 9))
def test_no_word_of_any_text_is_lost(text: str, size: int) -> None:
    """Fences apart, whose marks and language are not shown, the blocks together hold every letter in order."""
    text = re.sub(r"[`~]{3,}.*", "```", text)

    together = "".join(block.text for block in blocks(text, size))

    assert [each for each in together if each in "ab"] == [each for each in text if each in "ab"]


def test_lines_of_code_are_finished_one_by_one() -> None:
    """A long fence does not wait for its end; what is above a line is known for its colours."""
    splitter = Splitter()

    assert splitter.feed("```python\na = 1\n") == [Block(text="a = 1", is_code=True, language="python")]
    assert splitter.feed("b = '''\nc") == [Block(text="b = '''", is_code=True, language="python", before="a = 1")]
    unfinished = splitter.open(100)
    assert unfinished is not None
    assert (unfinished.text, unfinished.before) == ("c", "a = 1\nb = '''")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("#", None),
        ("```py", None),
        ("1.", None),
        ("Some **bold", "Some **bold**"),
        ("Some **", "Some "),
        ("a `code", "a `code`"),
        ("| a | b |", "| a | b |\n|---|---|"),
        ("| a | b |\n|--", "| a | b |\n|---|---|"),
        ("```py\nx\n``", None),
    ],
)
def test_what_is_unfinished_is_drawn_as_it_will_look(text: str, shown: str | None) -> None:
    """Marks that are half there do not flash by."""
    splitter = Splitter()
    splitter.feed(text)

    found = splitter.open(100)

    assert (found.text if found else None) == shown


# Drawing


def test_code_keeps_its_colours_over_pieces() -> None:
    """A line within a string that began above is coloured as a string, though it is drawn on its own."""
    painter = Painter(40)

    (line,) = painter.block(Block(text="inside", is_code=True, language="python", before="x = '''"))

    assert plain(line) == "  inside" and "\x1b[32m" in line.text


@pytest.mark.parametrize("columns", [1, 2, 5, 12, 20, 80])
def test_no_line_is_as_wide_as_the_window(columns: int) -> None:
    """Whatever is drawn, in windows of any width; a full line would leave the cursor on its last character."""
    wide = f"{PAGE}\n{'漢字' * 60}\n\n{'x' * 300}\n\n```\n\t{'y' * 200}漢\n```\n- - - - - - - - - - deep\n>>>>>>>>>>> quoted"

    lines = drawn(Text(text=wide), Answered(generation=generation()), columns=columns)

    # A wide character has no room in less than its own width.
    assert max(map(columns_of, lines)) <= max(columns - 1, 2)


def test_tags_and_line_ends_are_shown_as_they_were_written() -> None:
    """HTML is text here, and a verse keeps its lines."""
    lines = drawn(Text(text="roses <b>are</b>\nred &amp; so on\n"), Answered(generation=generation()))

    assert lines[2:4] == ["roses <b>are</b>", "red & so on"]


def test_a_table_in_a_narrow_window_is_drawn_cell_by_cell() -> None:
    """Columns that would have no room become lines."""
    lines = drawn(Text(text="| name | n |\n|---|---|\n| tea | 3 |\n| rice | 4 |\n\n"), columns=14)

    assert lines[2:7] == ["name: tea", "n: 3", "", "name: rice", "n: 4"]


def test_events_are_said_in_quiet_lines_around_the_text() -> None:
    """What memory gave, tools, notices, being away and back, and the figures at the end."""
    part = ContextPart(part="memory", id="m1", tokens=12)

    lines = drawn(
        ContextUsed(included=[part, part], left_out=[part], tokens=24, counted_by="estimate"),
        Notice(text="a word"),
        ToolCalled(name="recall", arguments='{"key":\n"tea"}'),
        ToolAnswered(name="recall", ok=True, content="green\ntea"),
        ToolAnswered(name="forget", ok=False, content="no"),
        Text(text="Half"),
        Away(reason="the bus went away"),
        Back(away_s=61.0),
        Text(text="Whole."),
        Answered(generation=generation(finish_reason="length")),
        columns=90,
    )

    assert lines == [
        "",
        "tiny",
        "memory: 2 pieces, 24 tokens, 1 left out (/memory show-context)",
        "note: a word",
        '→ recall {"key": "tea"}',
        "← green tea",
        "← forget refused: no",
        "",
        "Half",
        "",
        "away: the bus went away; waiting for it, Ctrl-C gives up",
        "back after 1 min 1 s; asking again",
        "",
        "Whole.",
        "",
        "57 tokens · 40.0 tok/s · first after 0.2 s · cut off at its limit of tokens (/options",
        "max_tokens=...)",
    ]


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (Stopped(text=""), ["stopped"]),
        (Stopped(text="some"), ["stopped; what had come is kept"]),
        (Failed(code="overloaded", message="full"), ["overloaded: full", "the queue is full; /retry asks again"]),
        (Failed(code="not_found", message="no model x"), ["not_found: no model x"]),
    ],
)
def test_every_end_is_said(event: Event, said: list[str]) -> None:
    """How an answer ended, and what can be done where the message itself does not say it."""
    assert drawn(event)[2:] == said


def test_control_characters_are_spelt_out_wherever_they_come_from() -> None:
    """Text in pieces, tools, notices, errors: none of them reaches the terminal."""
    attack = "\x1b[2J\x9b\x07"

    view = AnswerView(Painter(60), attack, 0.0)
    for event in (
        Notice(text=attack),
        ToolCalled(name=attack, arguments=attack),
        ToolAnswered(name="x", ok=False, content=attack),
        Text(text=f"one\r\n{attack}\r"),
        Text(text=f"\ntwo `{attack}`\n```{attack}\n{attack}\n```\n"),
        Failed(code="internal", message=attack),
    ):
        view.take(event, 0.0)
    finished, _ = view.frame(24, 0.0)

    for line in finished:
        assert not re.search(r"[\x00-\x1a\x1c-\x1f\x7f-\x9f]|\x1b(?!\[[0-9;]*m)", line.text)
    assert "one" in map(plain, finished), "a carriage return before a line end is none of them"


def test_the_live_part_is_lower_than_the_window() -> None:
    """The end of a block that is higher is shown, and all of it when it is finished."""
    words = " ".join(f"word{number}" for number in range(400))
    view = AnswerView(Painter(40), "tiny", 0.0)
    view.take(Text(text=words), 0.0)

    for rows in (2, 3, 10, 24):
        finished, live = view.frame(rows, 0.0)
        assert not finished and len(live) < max(rows, 2)
        assert rows < 3 or "word399" in plain(live[-2])

    view.take(Answered(generation=generation()), 0.0)
    finished, live = view.frame(10, 0.0)
    assert not live
    assert " ".join(map(plain, finished)).split()[1:401] == words.split()


def test_a_huge_block_is_drawn_plainly() -> None:
    """Reading it as markdown would take minutes; not a character is lost."""
    text = "*a* " * 100_000

    lines = drawn(Text(text=text), Answered(generation=generation()))

    assert sum(line.count("*a*") for line in lines) == 100_000


# The end of the screen


class Screen:
    """As much of a terminal as a region needs: rows, a cursor, and a scrollback."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self.lines = [""]
        self.at = 0
        self.column = 0

    def write(self, text: str) -> None:
        """Take what is written."""
        for code, other in re.findall(r"(\x1b\[[?0-9;]*[A-Za-z])|([^\x1b])", text):
            if other == "\r":
                self.column = 0
            elif other == "\n":
                self.at += 1
                if self.at == len(self.lines):
                    self.lines.append("")
            elif other:
                line = self.lines[self.at].ljust(self.column)
                self.lines[self.at] = line[: self.column] + other + line[self.column + 1 :]
                self.column += 1
            elif code.endswith("A"):
                self.at = max(self.at - int(code[2:-1]), len(self.lines) - self.rows, 0)
            elif code.endswith("B"):
                self.at = min(self.at + int(code[2:-1]), len(self.lines) - 1)
            elif code == "\x1b[K":
                self.lines[self.at] = self.lines[self.at][: self.column]
            elif code == "\x1b[2K":
                self.lines[self.at] = ""
            elif code == "\x1b[J":
                assert (self.at, self.column) != (max(len(self.lines) - self.rows, 0), 0), "clears the whole screen"
                self.lines[self.at :] = [self.lines[self.at][: self.column], *[""] * (len(self.lines) - self.at - 1)]
            else:
                assert code in ("\x1b[?25l", "\x1b[?25h", "\x1b[?7l", "\x1b[?7h", "\x1b[?2026h", "\x1b[?2026l"), code

    def shown(self) -> list[str]:
        """Everything from the top of the scrollback, without empty lines at the end."""
        return "\n".join(self.lines).rstrip().split("\n")


def lines_of(*texts: str) -> list[Line]:
    """Lines without colours."""
    return [Line(text, len(text)) for text in texts]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.lists(st.sampled_from("abc"), max_size=4), st.lists(st.sampled_from("xyz"), max_size=5))))
def test_what_is_finished_stands_once_above_what_is_live(frames: list[tuple[list[str], list[str]]]) -> None:
    """After any frames the screen holds everything finished, in order, then the last live lines, and nothing else."""
    screen, region = Screen(20, 8), Region(20)
    expected: list[str] = []
    live: list[str] = []
    for finished, live in frames:
        screen.write(region.draw(lines_of(*finished), lines_of(*live), 20))
        expected += finished

        assert screen.shown() == ([*expected, *live] or [""])
    screen.write(region.end([], 20))
    assert screen.shown() == (expected or [""])


def test_nothing_is_written_where_nothing_changed() -> None:
    """A line of state that stays the same costs no bytes over ssh, and a changed one only itself."""
    region = Region(40)
    region.draw([], lines_of("one", "two", "state"), 40)

    assert region.draw([], lines_of("one", "two", "state"), 40) == ""
    changed = region.draw([], lines_of("one", "two", "later"), 40)
    assert "later" in changed and "one" not in changed and "two" not in changed


def test_a_narrower_window_is_reckoned_with() -> None:
    """The terminal has wrapped what was too wide: the region begins as many rows higher."""
    region = Region(40)
    region.draw([], lines_of("a" * 39, "b" * 12), 40)

    assert "\x1b[2A" in region.draw([], lines_of("a"), 20)


# The bar


def status(**changes: object) -> Status:
    """A bar with everything in it."""
    everything = {
        "wanted": "fast",
        "model": "tiny",
        "loaded": ("tiny", "big"),
        "vram": (2**30, 8 * 2**30),
        "tokens_per_s": 41.6,
        "context": (812, 4096),
        "session": "chat-20260131-142233-a1b2c3",
        "project": "garden",
    }
    return Status(**{**everything, **changes})  # type: ignore[arg-type]


def test_the_bar_has_everything_where_there_is_room() -> None:
    """From what matters most to what matters least, left to right."""
    assert " · ".join(part.text for part in fitted(status(), 200)) == (
        "fast → tiny · loaded big · VRAM 1.0/8 GiB · 42 tok/s · 812/4,096 tokens · session a1b2c3 · garden · memory on"
    )


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (60, "fast → tiny · VRAM 1.0/8 GiB · 42 tok/s · garden · memory on"),
        (40, "fast → tiny · 42 tok/s · memory on"),
        (19, "fast → tiny"),
        (8, "fast → …"),
    ],
)
def test_the_bar_drops_what_has_no_room(width: int, shown: str) -> None:
    """The model stays longest."""
    assert " · ".join(part.text for part in fitted(status(), width)) == shown


def test_the_bar_says_first_what_is_wrong() -> None:
    """In the narrowest window too."""
    assert [part.text for part in fitted(status(is_away=True), 10)] == ["bus away"]
    assert fitted(status(trouble="no model service"), 200)[0].text == "no model service"
