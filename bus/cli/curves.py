"""Curves in a terminal, drawn with braille dots, and in a file. Pure but for the file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from bus.cli.failures import UsageError
from schemas.bodies.learning_jobs import CurvePoint

# A braille character is two dots wide and four high. Source: The Unicode Standard, block 2800.
_BRAILLE: Final = 0x2800
_DOTS: Final = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))

# Formats of a plotted file.
PLOT_SUFFIXES: Final = (".png", ".svg")


class Curve(NamedTuple):
    """A line through (x, y), by growing x."""

    name: str
    points: Sequence[tuple[float, float]]


def curves_of(points: Sequence[CurvePoint]) -> list[Curve]:
    """Loss, loss on the evaluated rows and learning rate of a training, those that have values."""
    found = [
        Curve("loss", [(one.step, one.loss) for one in points if one.loss is not None]),
        Curve("evaluation loss", [(one.step, one.eval_loss) for one in points if one.eval_loss is not None]),
        Curve("learning rate", [(one.step, one.learning_rate) for one in points if one.learning_rate is not None]),
    ]
    return [Curve(name, kept) for name, values in found if (kept := [one for one in values if math.isfinite(one[1])])]


def chart(curve: Curve, width: int, height: int) -> list[str]:
    """The curve in `height` lines of at most `width` columns, under a line with its name and newest value."""
    low, high = _range([y for _, y in curve.points])
    labels = (f"{high:.3g}", f"{low:.3g}")
    margin = max(map(len, labels)) + 1
    columns = max(width - margin - 1, 4)
    rows = _drawn(curve.points, columns, height, low, high)
    head = f"{curve.name}  {curve.points[-1][1]:.4g}  (step {curve.points[-1][0]:.0f})"
    lines = [head[:width]]
    for index, row in enumerate(rows):
        label = labels[0] if index == 0 else labels[1] if index == height - 1 else ""
        lines.append(f"{label:>{margin - 1}} |{row}")
    return lines


def _drawn(points: Sequence[tuple[float, float]], columns: int, height: int, low: float, high: float) -> list[str]:
    cells = [[0] * columns for _ in range(height)]
    first, last = points[0][0], points[-1][0]
    wide, tall = columns * 2 - 1, height * 4 - 1
    dots = [
        (round((x - first) / (last - first) * wide) if last > first else 0, round((high - y) / (high - low) * tall))
        for x, y in points
    ]
    for (x, y), (next_x, next_y) in zip(dots, dots[1:] or dots, strict=False):
        # Every dot between two points, so that a steep line has no gaps.
        reach = max(abs(next_x - x), abs(next_y - y), 1)
        for part in range(reach + 1):
            across, down = x + (next_x - x) * part // reach, y + (next_y - y) * part // reach
            cells[down // 4][across // 2] |= _DOTS[down % 4][across % 2]
    return ["".join(chr(_BRAILLE + dots) if dots else " " for dots in row).rstrip() for row in cells]


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest, never the same."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - abs(low) / 2 - 1e-12, high + abs(high) / 2 + 1e-12)


def check_plot(path: Path) -> None:
    """Raises UsageError for a file that could not be plotted to, before anything else is done."""
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise UsageError(f"--plot {path}: the name must end in {' or '.join(PLOT_SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--plot {path}: there is no folder {path.absolute().parent}")


def write_plot(path: Path, title: str, points: Sequence[CurvePoint]) -> None:
    """Loss and learning rate as a picture. Raises UsageError where nothing is known yet, OSError."""
    curves = curves_of(points)
    if not curves:
        raise UsageError(f"{title} has no curve yet, so there is nothing to plot")
    # Takes half a second to import, and only who plots needs it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    losses = figure.add_subplot()
    losses.set_title(title)
    losses.set_xlabel("step")
    losses.set_ylabel("loss")
    rates = losses.twinx()
    rates.set_ylabel("learning rate")
    for index, curve in enumerate(curves):
        axes = rates if curve.name == "learning rate" else losses
        style = ":" if curve.name == "learning rate" else "-"
        axes.plot(*zip(*curve.points, strict=True), style, color=f"C{index}", label=curve.name)
    figure.legend(loc="outside lower center", ncols=len(curves))
    figure.savefig(path)
