"""What a run showed: the table for people and the object for programs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from bench_bus_parts.cases import Results
from bench_bus_parts.line_protocol import Fields

# Case -> (figure in its column, its unit, True when more is better).
MAIN_FIGURE: dict[str, tuple[str, str, bool]] = {
    "rr": ("per_s", "requests/s", True),
    "latency": ("p50_us", "us p50", False),
    "stream": ("per_s", "chunks/s", True),
    "echo16": ("p50_ms", "ms p50", False),
    "mixed": ("p50_us", "us p50", False),
    "pubsub": ("per_s", "delivered/s", True),
}

# Further figures of a case, shown behind the main one.
MORE_FIGURES: dict[str, tuple[str, ...]] = {
    "latency": ("p99_us",),
    "stream": ("p50_ms",),
    "echo16": ("mb_per_s",),
    "mixed": ("p99_us", "bulk_per_s"),
    "pubsub": ("published_per_s", "lost_share"),
}

TITLES: dict[str, str] = {
    "rr": "Request/reply, 256 bytes, 64 in flight",
    "latency": "Request/reply, 256 bytes, one at a time",
    "stream": "Stream of 500 chunks of 64 bytes",
    "echo16": "Echo of 16 MiB",
    "mixed": "Small calls while 16 MiB bodies pass",
    "pubsub": "1 publisher, 4 subscribers, 128 bytes",
}

# Key of the JSON object -> (case, figure, peer beside ours). Above 1 is better for ours.
RATIOS: dict[str, tuple[str, str, str]] = {
    "rr_ratio_to_proxy": ("rr", "per_s", "proxy"),
    "rr_ratio_to_tuned_proxy": ("rr", "per_s", "tuned"),
    "rr_ratio_to_nats": ("rr", "per_s", "nats"),
    "rr_ratio_to_redis": ("rr", "per_s", "redis"),
    "p50_ratio_to_proxy": ("latency", "p50_us", "proxy"),
    "p50_ratio_to_nats": ("latency", "p50_us", "nats"),
    "stream_ratio_to_nats": ("stream", "per_s", "nats"),
    "echo16_ratio_to_tuned_proxy": ("echo16", "p50_ms", "tuned"),
    "echo16_ratio_to_nats": ("echo16", "p50_ms", "nats"),
    "mixed_p50_ratio_to_nats": ("mixed", "p50_us", "nats"),
    "mixed_p99_ratio_to_nats": ("mixed", "p99_us", "nats"),
    "pubsub_ratio_to_nats": ("pubsub", "per_s", "nats"),
    "pubsub_ratio_to_tuned_proxy": ("pubsub", "per_s", "tuned"),
}

# Key of the JSON object -> (case, figure) of ours alone.
OWN_FIGURES: dict[str, tuple[str, str]] = {
    "rr_per_s": ("rr", "per_s"),
    "p50_us": ("latency", "p50_us"),
    "p99_us": ("latency", "p99_us"),
    "stream_chunks_per_s": ("stream", "per_s"),
    "echo16_ms": ("echo16", "p50_ms"),
    "pubsub_delivered_per_s": ("pubsub", "per_s"),
    "pubsub_lost_share": ("pubsub", "lost_share"),
}


def ratio(results: Results, figure: str, one: str, other: str, *, is_more_better: bool) -> float | None:
    """How `one` compares with `other`: median of the rounds' own ratios, above 1 when `one` is better.

    Two peers of the same round ran within seconds of each other, so a slow stretch of the machine cancels out.
    """
    if one not in results or other not in results:
        return None
    pairs = zip(results[one].values(figure), results[other].values(figure), strict=True)
    ratios = [(a / b if is_more_better else b / a) for a, b in pairs if a and b]
    return round(statistics.median(ratios), 3) if ratios else None


def table(measured: Mapping[str, Results]) -> str:
    """Every case with every peer: median, range over the rounds, ratios, and where the CPU time went."""
    lines: list[str] = []
    for case, results in measured.items():
        figure, unit, is_more_better = MAIN_FIGURE[case]
        lines += ["", f"{TITLES[case]}  ({unit})"]
        header = f"  {'peer':8}{'median':>11}{'min':>11}{'max':>11}{'to proxy':>10}{'to tuned':>10}{'to nats':>9}"
        lines.append(f"{header}  CPU us per operation; more")
        for peer, rounds in results.items():
            values = rounds.values(figure)
            compared = [
                ratio(results, figure, peer, other, is_more_better=is_more_better)
                for other in ("proxy", "tuned", "nats")
            ]
            cells = "".join(f"{_number(value):>11}" for value in (rounds.median(figure), min(values), max(values)))
            cells += f"{_ratio(compared[0]):>10}{_ratio(compared[1]):>10}{_ratio(compared[2]):>9}"
            cpu = " ".join(f"{role} {_number(spent)}" for role, spent in rounds.cpu_us().items())
            more = "".join(f"  {key} {_number(rounds.median(key))}" for key in MORE_FIGURES.get(case, ()))
            lines.append(f"  {peer:8}{cells}  {cpu};{more}")
    return "\n".join(lines[1:])


def alone_table(alone: Mapping[str, float | None]) -> str:
    """The broker by itself, one figure a line."""
    return "\n".join(["Broker alone", *(f"  {key:28}{_number(value):>12}" for key, value in alone.items())])


def figures(
    measured: Mapping[str, Results], alone: Mapping[str, float | None], missing: Mapping[str, str], keys: Sequence[str]
) -> Fields:
    """The JSON object. `keys` are those of `alone`, null when that part did not run, as every ratio without its peer."""
    summary: Fields = {}
    for key, (case, figure, peer) in RATIOS.items():
        is_more_better = figure == "per_s"
        summary[key] = ratio(measured.get(case, {}), figure, "ours", peer, is_more_better=is_more_better)
    for key, (case, figure) in OWN_FIGURES.items():
        ours = measured.get(case, {}).get("ours")
        summary[key] = round(ours.median(figure), 3) if ours else None
    summary |= {key: alone.get(key) for key in keys}
    summary["missing"] = dict(missing)
    summary["peers"] = {
        case: {
            peer: {"rounds": rounds.figures, "cpu_us_per_operation": rounds.cpu_us()}
            for peer, rounds in results.items()
        }
        for case, results in measured.items()
    }
    return summary


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
