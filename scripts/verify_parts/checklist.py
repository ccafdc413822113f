"""One line of the checklist, what came of it, and the run over all lines; knows nothing of what is checked."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from schemas.errors import BusError
from verify_parts.plain import NoAnswer

if TYPE_CHECKING:
    from verify_parts.probe import Probe

Verdict = Literal["PASS", "FAIL", "SKIP"]


class Wrong(Exception):
    """The system answered something else than it should; the message says what."""


class Skipped(Exception):
    """The line says nothing about this system; the message says why."""


class Check(NamedTuple):
    """A line: asks through the probe, raises Wrong or Skipped."""

    name: str
    run: Callable[[Probe], None]


class Group(NamedTuple):
    """Lines about one part of the system."""

    name: str
    about: str
    checks: tuple[Check, ...]


class Line(NamedTuple):
    """What came of a check. evidence: what was sent, what came and how long it took, one text an exchange."""

    group: str
    name: str
    verdict: Verdict
    reason: str
    evidence: list[str]
    took_s: float

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        return self._asdict()


def run(groups: Iterable[Group], probe: Probe) -> Iterator[Line]:
    """Every line as it is done. What a check wrote is taken away before its line is given."""
    for group in groups:
        for check in group.checks:
            began_at = time.monotonic()
            probe.evidence = []
            verdict, reason = _verdict(check, probe)
            yield Line(group.name, check.name, verdict, reason, probe.evidence, round(time.monotonic() - began_at, 4))
    began_at = time.monotonic()
    probe.evidence = []
    left = probe.close()
    verdict = "FAIL" if left else "PASS"
    yield Line("end", "nothing is left behind", verdict, "; ".join(left), probe.evidence, time.monotonic() - began_at)


def _verdict(check: Check, probe: Probe) -> tuple[Verdict, str]:
    left: list[str] = []
    try:
        with contextlib.ExitStack() as after:
            after.callback(lambda: left.extend(probe.clean_up()))
            check.run(probe)
    except Skipped as skipped:
        return "SKIP", str(skipped)
    except (Wrong, NoAnswer) as wrong:
        return "FAIL", str(wrong)
    except BusError as error:
        return "FAIL", f"{error.code}: {error.message}"
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OSError) as error:
        # A reply of another shape than the contract's, or a connection that broke.
        return "FAIL", f"the answer is not of its shape: {type(error).__name__}: {error}"
    return ("FAIL", f"left behind: {'; '.join(left)}") if left else ("PASS", "")
