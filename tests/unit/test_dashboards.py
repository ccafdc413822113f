"""The dashboards are whole, ask for what is declared, and show everything that is counted."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from schemas.metrics import METRICS
from tests.prometheus_process import ROOT, RULES

FOLDER = ROOT / "config" / "grafana"
DASHBOARDS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text()) for path in sorted((FOLDER / "dashboards").glob("*.json"))
}
SOURCES = yaml.safe_load((FOLDER / "provisioning/datasources/olympus.yaml").read_text())["datasources"]

# Metrics that nobody draws, and why.
NOT_DRAWN: dict[str, str] = {}

each_dashboard = pytest.mark.parametrize("name", DASHBOARDS)


def panels_of(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every panel, those in collapsed rows included; no headings."""
    for panel in dashboard["panels"]:
        yield from panel["panels"] if panel["type"] == "row" else [panel]


def sources_in(value: Any) -> Iterator[Any]:
    """Whatever stands under the key `datasource`, anywhere."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "datasource":
                yield inner
            yield from sources_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from sources_in(inner)


def metrics_in(text: str) -> set[str]:
    """Names of declared metrics that a text asks for."""
    found = set(re.findall(r"(?<![\w:])olympus_[a-z0-9_]+(?![\w:])", text))
    return {name if name in METRICS else re.sub(r"_(bucket|sum|count)$", "", name) for name in found}


def recorded() -> dict[str, str]:
    """Recording rules with what they are made of."""
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return {rule["record"]: rule["expr"] for group in groups for rule in group["rules"] if "record" in rule}


def test_the_six_dashboards_are_there() -> None:
    """None was lost, none is unknown."""
    assert set(DASHBOARDS) == {"overview", "bus", "memory", "models", "learning", "errors"}


def test_files_are_what_the_script_writes() -> None:
    """Somebody who changes one changes scripts/dashboard_parts."""
    said = subprocess.run(
        [sys.executable, "scripts/make_dashboards.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert said.returncode == 0, said.stderr


def test_check_sees_a_file_that_was_changed_by_hand(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of date, or missing: both are said by name."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import make_dashboards

    monkeypatch.setattr(make_dashboards, "FOLDER", tmp_path / "dashboards")
    assert make_dashboards.main(["--check"]) == 1
    assert make_dashboards.main([]) == 0
    assert make_dashboards.main(["--check"]) == 0
    (tmp_path / "dashboards" / "bus.json").write_text("{}")
    assert make_dashboards.main(["--check"]) == 1


def test_identities_are_unique() -> None:
    """Of dashboards among themselves, and of panels within one."""
    uids = [dashboard["uid"] for dashboard in DASHBOARDS.values()]
    assert len(set(uids)) == len(uids)
    for dashboard in DASHBOARDS.values():
        ids = [panel["id"] for panel in [*dashboard["panels"], *panels_of(dashboard)] if panel["type"] != "row"]
        assert len(set(ids)) == len({json.dumps(panel) for panel in panels_of(dashboard)}) <= len(ids)


@each_dashboard
def test_every_query_goes_to_the_provisioned_source(name: str) -> None:
    """The uid of the provisioning, everywhere; Grafana's own for its own marks."""
    (source,) = SOURCES
    allowed = ({"type": "prometheus", "uid": source["uid"]}, {"type": "grafana", "uid": "-- Grafana --"})

    assert all(one in allowed for one in sources_in(DASHBOARDS[name]))


@each_dashboard
def test_every_panel_can_be_understood(name: str) -> None:
    """Title, description, unit, thresholds, queries that have an expression."""
    for panel in panels_of(DASHBOARDS[name]):
        assert panel["title"] and panel["description"].endswith((".", "?")), panel["title"]
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"], panel["title"]
        assert defaults["thresholds"]["steps"][0]["value"] is None
        assert panel["targets"] and all(target["expr"].strip() for target in panel["targets"]), panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@each_dashboard
def test_panels_neither_overlap_nor_stick_out(name: str) -> None:
    """The grid is 24 wide."""
    taken: set[tuple[int, int]] = set()
    for panel in [
        *DASHBOARDS[name]["panels"],
        *[p for row in DASHBOARDS[name]["panels"] for p in row.get("panels", [])],
    ]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


@each_dashboard
def test_links_lead_to_our_dashboards_and_variables_exist(name: str) -> None:
    """A link's uid is one of ours; what a query writes with a dollar is a variable, or Grafana's own."""
    dashboard = DASHBOARDS[name]
    uids = {one["uid"] for one in DASHBOARDS.values()}
    links = [*dashboard["links"], *[link for panel in panels_of(dashboard) for link in panel.get("links", [])]]
    variables = {one["name"] for one in dashboard["templating"]["list"]} | {"__rate_interval", "__range"}
    queries = " ".join(target["expr"] for panel in panels_of(dashboard) for target in panel["targets"])

    assert {re.split(r"[/?]", link["url"])[2] for link in links} <= uids
    assert len(dashboard["links"]) == len(DASHBOARDS) - 1
    assert set(re.findall(r"\$(\w+)", queries)) <= variables
    assert {f"${one['name']}" for one in dashboard["templating"]["list"]} <= set(re.findall(r"\$\w+", queries))


@each_dashboard
def test_queries_ask_for_what_is_declared(name: str) -> None:
    """Each name is a metric of schemas/metrics.py, a recording rule, or Prometheus's own."""
    known = recorded()
    for panel in panels_of(DASHBOARDS[name]):
        for target in panel["targets"]:
            assert metrics_in(target["expr"]) <= set(METRICS), target["expr"]
            rules = set(
                re.findall(r"\b(?:[a-z]+:)?olympus_[a-z0-9_]+:[a-z0-9_]+|\b[a-z]+:olympus_[a-z0-9_:]+", target["expr"])
            )
            assert rules <= set(known), target["expr"]


def test_everything_that_is_counted_is_drawn() -> None:
    """A metric that nobody draws costs and helps nobody, unless NOT_DRAWN says why."""
    queries = [
        target["expr"]
        for dashboard in DASHBOARDS.values()
        for panel in panels_of(dashboard)
        for target in panel["targets"]
    ]
    queries += [made_of for rule, made_of in recorded().items() if any(rule in query for query in queries)]
    drawn = {name for query in queries for name in metrics_in(query)}

    assert set(METRICS) - drawn == set(NOT_DRAWN)


def test_provisioning_names_the_files_by_their_environment() -> None:
    """As docs/dashboards.md and compose.yaml set them."""
    (provider,) = yaml.safe_load((FOLDER / "provisioning/dashboards/olympus.yaml").read_text())["providers"]

    assert SOURCES[0]["url"] == "${PROMETHEUS_URL}"
    assert provider["options"]["path"] == "${DASHBOARDS_FOLDER}"
