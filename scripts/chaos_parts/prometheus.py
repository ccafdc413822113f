"""A Prometheus with the project's own configuration, in a folder of its own, asked over HTTP.

It scrapes and evaluates every second. So that an alert that takes minutes fires in seconds, the durations of the rules may
be divided by a factor: `for`, the windows in brackets, offsets, and the hours that `predict_linear` looks ahead. Thresholds
stay as they are.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from bench_bus_parts.processes import ROOT, ProcessFailed, Stage, free_port

# Where the configuration stands, and what its rules and targets are named below it.
CONFIG: Final = ROOT / "config" / "prometheus.yml"

# Seconds between two scrapes, and between two evaluations, of a shortened one: the exporter gives the same answer again
# for a quarter of a second.
_INTERVAL_S: Final = 1
# A window needs two scrapes in it, also where one of them came late, so none is shorter than this, seconds.
_WINDOW_MIN_S: Final = 5

# How long it may take to be ready, seconds.
_READY_S: Final = 30.0

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Prometheus:
    """One server. target: host and port of the exporter. factor: what durations are divided by."""

    def __init__(self, stage: Stage, target: str, factor: int = 1) -> None:
        program = shutil.which("prometheus")
        if program is None:
            raise ProcessFailed("prometheus is not installed (Debian package prometheus)")
        folder = stage.home / "prometheus"
        config = _written(folder, target, factor)
        self.port = free_port()
        self._url = f"http://127.0.0.1:{self.port}"
        # One core: it shares the machine with the house it looks at.
        self._process = stage.start(
            "prometheus",
            [
                program,
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
                "--log.level=warn",
            ],
            {"GOMAXPROCS": "1"},
        )
        self.log = self._process.log
        deadline = time.monotonic() + _READY_S
        while not self._is_ready():
            if self._process.child.poll() is not None or time.monotonic() > deadline:
                raise ProcessFailed(f"Prometheus does not come up; it wrote:\n{self.log.read_text()[-1500:]}")
            time.sleep(0.05)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an expression now. Raises ValueError with Prometheus's words where it is wrong."""
        answer = self._get("/api/v1/query", query=expression)
        if answer["status"] != "success":
            raise ValueError(f"{expression}: {answer.get('error')}")
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def label_values(self, label: str, selector: str) -> list[str]:
        """Values of a label, as the variables of a dashboard ask for them."""
        values: list[str] = self._get(f"/api/v1/label/{label}/values", **{"match[]": selector})["data"]
        return values

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with its health, its last error and its alerts."""
        groups = self._get("/api/v1/rules")["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def firing(self) -> dict[str, dict[str, str]]:
        """Alerts that fire now, by name, with the texts of one of each."""
        alerts = self._get("/api/v1/alerts")["data"]["alerts"]
        return {one["labels"]["alertname"]: one["annotations"] for one in alerts if one["state"] == "firing"}

    def targets(self) -> list[dict[str, Any]]:
        """Whom it scrapes, and how that goes."""
        targets: list[dict[str, Any]] = self._get("/api/v1/targets")["data"]["activeTargets"]
        return targets

    async def until(self, condition: Callable[[], object], limit_s: float) -> float | None:
        """Seconds until `condition` holds; None when it does not within `limit_s`."""
        began = time.monotonic()
        while time.monotonic() - began < limit_s:
            if await asyncio.to_thread(condition):
                return time.monotonic() - began
            await asyncio.sleep(0.2)
        return None

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _get(self, path: str, **parameters: str) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(
                f"{self._url}{path}?{urllib.parse.urlencode(parameters)}", timeout=30
            ) as answer:
                decoded: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            decoded = json.load(error)
        return decoded


def _written(folder: Path, target: str, factor: int) -> Path:
    """A copy of the configuration that scrapes `target`."""
    shutil.copytree(CONFIG.parent / "prometheus", folder / "prometheus")
    (folder / "prometheus" / "targets.yml").write_text(f"- targets: [{target!r}]\n")
    text = CONFIG.read_text()
    text = re.sub(r"(?m)^( *(?:scrape|evaluation)_(?:interval|timeout)): .*$", rf"\1: {_INTERVAL_S}s", text)
    for rules in (folder / "prometheus" / "rules").glob("*.yml"):
        rules.write_text(shortened(rules.read_text(), factor))
    config = folder / "prometheus.yml"
    config.write_text(text)
    return config


def shortened(rules: str, factor: int) -> str:
    """Rules with every duration divided by `factor`; windows keep room for two scrapes."""
    if factor == 1:
        return rules
    rules = re.sub(
        r"(?m)^( *for): (\w+)$", lambda found: f"{found[1]}: {_divided(found[2], factor, least_s=_INTERVAL_S)}s", rules
    )
    rules = re.sub(r"offset (\w+)", lambda found: f"offset {_divided(found[1], factor, least_s=_WINDOW_MIN_S)}s", rules)
    rules = re.sub(r"(\d+) \* 3600\)", lambda found: f"{int(found[1]) * 3600 // factor})", rules)
    return re.sub(r"\[(\w+)\]", lambda found: f"[{_divided(found[1], factor, least_s=_WINDOW_MIN_S)}s]", rules)


def _divided(duration: str, factor: int, least_s: int) -> int:
    return max(round(seconds(duration) / factor), least_s)


def seconds(duration: str) -> int:
    """Of 90s, 5m, 1h or 1d."""
    return int(duration[:-1]) * _UNITS[duration[-1]]


def installed() -> bool:
    """True where there is a Prometheus."""
    return shutil.which("prometheus") is not None and os.access(CONFIG, os.R_OK)
