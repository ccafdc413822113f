"""The state of `olympus top`: where one looks, what is selected and asked, and which key changes what.

Knows neither terminal nor bus: keys and samples in, `Effect`s out, which `bus.cli.top.command` carries out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

from bus.cli.output import one_line, printable
from bus.cli.screen import Pasted
from bus.cli.top.looking import Rates, Sample
from bus.cli.top.tables import VIEWS, Entry, Listing, View, arranged, is_running, listing
from schemas.bodies.errors import ErrorAcknowledge, ErrorWhole
from schemas.bodies.learning_jobs import TrainingStop
from schemas.bodies.model import ModelInfo, ModelKeep, ModelLoad, ModelUnload

_FILTER_MAX: Final = 200

_MOVES: Final = frozenset({"up", "down", "page-up", "page-down", "home", "end"})


class Effect(NamedTuple):
    """Something to be asked on the bus. question: what the person says yes to. done: what is said when it has worked."""

    question: str
    subject: str
    body: Any
    doing: str
    done: str


class Show(NamedTuple):
    """The whole of a group of errors is wanted."""

    fingerprint: str


Wish = Effect | Show | Literal["quit"] | None


class Place:
    """Where one looks in a view."""

    def __init__(self) -> None:
        self.key = ""
        self.index = 0
        self.sort: int | None = None
        self.is_reversed = False
        self.wanted = ""
        # First row, or first line, that the last frame showed.
        self.top = 0


class Board:
    """Everything that a frame is drawn from."""

    def __init__(self) -> None:
        self.view: View = "overview"
        self.places: dict[View, Place] = {view: Place() for view in VIEWS}
        self.sample: Sample | None = None
        self.rate: Rates | None = None
        self.is_paused = False
        self.is_help = False
        self.help_top = 0
        self.is_filtering = False
        self.is_detail = False
        self.detail_top = 0
        self.whole: ErrorWhole | None = None
        self.asked: Effect | None = None
        self.said = ""
        # Since when the broker does not answer, seconds of the monotonic clock, and what was the matter.
        self.away_since: float | None = None
        self.away_why = ""
        # Rows that one page of the last frame had.
        self.page = 1

    # What comes

    def took(self, sample: Sample, rate: Rates | None) -> None:
        """A new look."""
        self.sample, self.rate = sample, rate
        self.away_since = None

    def lost(self, at: float, why: str) -> None:
        """A look failed."""
        if self.away_since is None:
            self.away_since = at
        self.away_why = why

    @property
    def place(self) -> Place:
        """Where one looks in the view that is shown."""
        return self.places[self.view]

    def listing(self) -> Listing | None:
        """What the view lists; None for the overview, and before the first look."""
        if self.sample is None or self.view == "overview":
            return None
        return listing(self.view, self.sample, self.rate)

    def entries(self) -> list[Entry]:
        """The rows of the view as they stand."""
        found = self.listing()
        if found is None:
            return []
        place = self.place
        return arranged(found.entries, place.sort, is_reversed=place.is_reversed, wanted=place.wanted)

    def selected(self, entries: list[Entry]) -> int:
        """Which row is selected: the same thing as before wherever it stands now, else what took its place."""
        place = self.place
        for index, entry in enumerate(entries):
            if entry.key == place.key:
                place.index = index
                return index
        place.index = max(min(place.index, len(entries) - 1), 0)
        place.key = entries[place.index].key if entries else ""
        return place.index

    # Keys

    def press(self, key: str) -> Wish:
        """What a key asks for; everything that is about looking is done here."""
        if key in ("eof", "ctrl-c"):
            return "quit"
        if self.is_filtering:
            self._edit(key)
            return None
        if isinstance(key, Pasted):
            return None
        self.said = ""
        if self.asked is not None:
            asked, self.asked = self.asked, None
            if key in ("y", "Y"):
                return asked
            self.said = "not done"
            return None
        if self.is_help:
            if key in _MOVES:
                self.help_top = self._moved(self.help_top, key)
            else:
                self.is_help = False
            return None
        return self._command(key)

    def _edit(self, key: str) -> None:
        place = self.place
        match key:
            case Pasted():
                place.wanted = (place.wanted + " ".join(key.split()))[:_FILTER_MAX]
            case "enter":
                self.is_filtering = False
            case "esc":
                self.is_filtering, place.wanted = False, ""
            case "backspace":
                place.wanted = place.wanted[:-1]
            case "ctrl-u":
                place.wanted = ""
            case _ if len(key) == 1:
                place.wanted = (place.wanted + key)[:_FILTER_MAX]

    def _command(self, key: str) -> Wish:
        match key:
            case "q" | "ctrl-d":
                return "quit"
            case "esc":
                return self._back()
            case "?" | "h":
                self.is_help = True
                self.help_top = 0
            case " ":
                self.is_paused = not self.is_paused
            case "1" | "2" | "3" | "4" | "5":
                self._go(VIEWS[int(key) - 1])
            case "tab" | "right":
                self._go(VIEWS[(VIEWS.index(self.view) + 1) % len(VIEWS)])
            case "back-tab" | "left":
                self._go(VIEWS[(VIEWS.index(self.view) - 1) % len(VIEWS)])
            case _ if key in _MOVES:
                self._move(key)
            case _ if self.view != "overview":
                return self._list_command(key)
        return None

    def _back(self) -> Wish:
        if self.is_detail:
            self.is_detail = False
        elif self.place.wanted:
            self.place.wanted = ""
        else:
            return "quit"
        return None

    def _go(self, view: View) -> None:
        self.view = view
        self.is_detail = False

    def _list_command(self, key: str) -> Wish:
        place = self.place
        match key:
            case "/" if not self.is_detail:
                self.is_filtering = True
            case "s" if (found := self.listing()) is not None and not self.is_detail:
                # After the last column comes the view's own order again.
                place.sort = 0 if place.sort is None else place.sort + 1 if place.sort + 1 < len(found.header) else None
            case "r" if not self.is_detail:
                place.is_reversed = not place.is_reversed
            case "enter":
                return self._enter()
            case _ if (make := _ACTIONS.get((self.view, key))) is not None:
                self._ask(make)
        return None

    def _enter(self) -> Wish:
        self.is_detail = not self.is_detail
        self.detail_top = 0
        entries = self.entries()
        if not entries:
            self.is_detail = False
            return None
        key = entries[self.selected(entries)].key
        if self.is_detail and self.view == "errors":
            self.whole = None
            return Show(key)
        return None

    def _ask(self, make: Callable[[Sample, str], Effect | str]) -> None:
        entries = self.entries()
        if not entries or self.sample is None:
            self.said = "nothing is selected"
            return
        effect = make(self.sample, entries[self.selected(entries)].key)
        if isinstance(effect, str):
            self.said = effect
        else:
            self.asked = effect

    def _move(self, key: str) -> None:
        if self.is_detail:
            self.detail_top = self._moved(self.detail_top, key)
            return
        place = self.place
        if self.view == "overview":
            place.top = self._moved(place.top, key)
            return
        entries = self.entries()
        if entries:
            place.index = min(self._moved(self.selected(entries), key), len(entries) - 1)
            place.key = entries[place.index].key

    def _moved(self, at: int, key: str) -> int:
        """Where a key leads to; of lines the next frame, which knows how many there are, takes back what is too much."""
        by = {"up": -1, "down": 1, "page-up": -self.page, "page-down": self.page, "home": -_ALL, "end": _ALL}[key]
        return max(at + by, 0)


# More rows than there are.
_ALL: Final = 1_000_000


# Actions --------------------------------------------------------------------------------------------------------------


def _model_of(now: Sample, key: str) -> ModelInfo | None:
    return next((each for each in now.models or [] if each.name == key), None)


def _load(now: Sample, key: str) -> Effect | str:
    model = _model_of(now, key)
    if model is None or model.state == "unusable":
        return f"{key} cannot be used{': ' + one_line(model.error, 200) if model is not None and model.error else ''}"
    if model.state != "available":
        return f"{key} is {model.state} already"
    return Effect(f"load {key}?", "model.load", ModelLoad(model=key), f"loading {key} ...", f"{key} is in memory")


def _unload(now: Sample, key: str) -> Effect | str:
    model = _model_of(now, key)
    if model is None or model.state not in ("loaded", "loading"):
        return f"{key} is not in memory"
    busy = f" (it answers {model.in_flight} now)" if model.in_flight else ""
    body = ModelUnload(model=key)
    return Effect(f"unload {key}{busy}?", "model.unload", body, f"unloading {key} ...", f"{key} is out of memory")


def _keep(now: Sample, key: str) -> Effect | str:
    model = _model_of(now, key)
    if model is None:
        return f"{key} is gone"
    if model.is_pinned:
        body = ModelKeep(model=key, is_pinned=False)
        return Effect(f"unpin {key}?", "model.keep", body, f"unpinning {key} ...", f"{key} may leave memory again")
    body = ModelKeep(model=key, is_pinned=True)
    return Effect(f"pin {key} in memory?", "model.keep", body, f"pinning {key} ...", f"{key} is pinned")


def _stop(now: Sample, key: str) -> Effect | str:
    job = next((each for each in now.jobs or [] if each.job_id == key), None)
    if job is None or not is_running(job):
        return f"{key} has ended already"
    body = TrainingStop(job_id=key, reason="stopped in olympus top")
    return Effect(
        f"stop {key}?", "learning.training.stop", body, f"stopping {key} ...", f"{key} stops at its next step"
    )


def _acknowledge(now: Sample, key: str) -> Effect | str:
    short = printable(key[:8])
    body = ErrorAcknowledge(fingerprint=key)
    return Effect(
        f"acknowledge {short}?", "error.acknowledge", body, f"acknowledging {short} ...", f"{short} is acknowledged"
    )


_ACTIONS: Final[dict[tuple[View, str], Callable[[Sample, str], Effect | str]]] = {
    ("models", "l"): _load,
    ("models", "u"): _unload,
    ("models", "k"): _keep,
    ("jobs", "x"): _stop,
    ("errors", "a"): _acknowledge,
}
