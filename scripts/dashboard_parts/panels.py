"""Kinds of panels, and the JSON that Grafana (11 and newer) reads them from; it does not know what they show.

A panel is title, queries, unit and a sentence for whoever wonders what it means. Queries are texts `expr` or `expr -> legend`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Json = dict[str, Any]

# The data source's uid, fixed in config/grafana/provisioning/datasources: a dashboard finds it by this.
SOURCE: Final[Json] = {"type": "prometheus", "uid": "olympus-prometheus"}

# Grafana 11.0 writes this version; newer ones migrate it when they load it.
SCHEMA_VERSION: Final = 39

WIDTH: Final = 24

# One meaning, one colour, on every dashboard. Patterns of the names of series.
COLOURS: Final[Mapping[str, str]] = {
    "/^(ok|found|hit|passed|finished|granted|serving|free|available|champion|2..)$/": "green",
    "/^(failed|internal|error|critical|refused|lost|dropped|worker_lost|crash|5..)$/": "red",
    "/^(slowed|warning|overloaded|deadline_exceeded|expired|preempting|wasted|4..|damped)$/": "orange",
    "/^(cancelled|stopped|released|idle|info|debug|empty|miss|asked|muted)$/": "blue",
    "/^(limit|capacity|total)$/": "semi-dark-red",
}

# Labels whose values have such names.
_COLOURED: Final = re.compile(r"\{\{(outcome|state|reason|event|level|severity|status)\}\}$")

Step = tuple[float | None, str]
OK: Final[tuple[Step, ...]] = ((None, "green"),)
PLAIN: Final[tuple[Step, ...]] = ((None, "text"),)


def above(warning: float, critical: float | None = None) -> tuple[Step, ...]:
    """Green, orange from `warning` on, red from `critical` on."""
    steps: tuple[Step, ...] = ((None, "green"), (warning, "orange"))
    return steps if critical is None else (*steps, (critical, "red"))


def bad_above(limit: float) -> tuple[Step, ...]:
    """Green, red from `limit` on."""
    return ((None, "green"), (limit, "red"))


def bad_below(limit: float, warning: float | None = None) -> tuple[Step, ...]:
    """Red below `limit`, orange below `warning`, else green."""
    if warning is None:
        return ((None, "red"), (limit, "green"))
    return ((None, "red"), (limit, "orange"), (warning, "green"))


@dataclass(frozen=True)
class Panel:
    """One panel. unit: as Grafana names it. links: uids of dashboards that tell more."""

    title: str
    queries: tuple[str, ...]
    unit: str
    about: str
    kind: Literal["stat", "timeseries", "table", "heatmap", "state-timeline", "bargauge"] = "timeseries"
    width: int = 8
    height: int = 8
    steps: tuple[Step, ...] = PLAIN
    is_stacked: bool = False
    least: float | None = None
    most: float | None = None
    decimals: int | None = None
    has_line_at_steps: bool = False
    nothing: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    link: str = ""


@dataclass(frozen=True)
class Row:
    """Panels below one heading."""

    title: str
    panels: tuple[Panel, ...]
    is_collapsed: bool = False


@dataclass(frozen=True)
class Variable:
    """A choice at the head of a dashboard: the values of a label."""

    name: str
    title: str
    query: str


@dataclass(frozen=True)
class Dashboard:
    """One file. uid: what links name."""

    uid: str
    title: str
    about: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...] = ()


def stat(title: str, query: str, unit: str, about: str, *, steps: tuple[Step, ...] = PLAIN, **more: Any) -> Panel:
    """One number on a coloured ground."""
    return Panel(title, (query,), unit, about, "stat", **{"width": 3, "height": 4, "steps": steps, **more})


def lines(title: str, queries: Iterable[str] | str, unit: str, about: str, **more: Any) -> Panel:
    """Curves over time."""
    return Panel(title, _several(queries), unit, about, **{"least": 0, **more})


def areas(title: str, queries: Iterable[str] | str, unit: str, about: str, **more: Any) -> Panel:
    """Curves over time, each on top of the one before."""
    return Panel(title, _several(queries), unit, about, **{"least": 0, "is_stacked": True, **more})


def table(title: str, query: str, unit: str, about: str, names: Mapping[str, str], **more: Any) -> Panel:
    """Series as lines of a table. names: label -> heading, in their order; what is not named is not shown."""
    return Panel(title, (query,), unit, about, "table", names=names, **{"width": 12, **more})


def heat(title: str, metric: str, about: str, **more: Any) -> Panel:
    """A histogram over time. metric: a selector of its buckets."""
    query = f"sum by (le) (increase({metric}[$__rate_interval]))"
    return Panel(title, (f"{query} -> {{{{le}}}}",), "s", about, "heatmap", **more)


def quantiles(metric: str, label: str = "", which: Sequence[float] = (0.5, 0.95, 0.99)) -> tuple[str, ...]:
    """Queries for quantiles of a histogram. metric: a selector of its buckets. label: one curve for each value of it."""
    by = f"{label}, le" if label else "le"
    legend = f"{{{{{label}}}}} " if label else ""
    return tuple(
        f"histogram_quantile({one}, sum by ({by}) (rate({metric}[$__rate_interval]))) -> {legend}p{one * 100:g}"
        for one in which
    )


def _several(queries: Iterable[str] | str) -> tuple[str, ...]:
    return (queries,) if isinstance(queries, str) else tuple(queries)


# JSON -----------------------------------------------------------------------------------------------------------------


def as_json(dashboard: Dashboard, others: Iterable[Dashboard]) -> Json:
    """What Grafana loads."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.about,
        "tags": ["olympus"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "fiscalYearStartMonth": 0,
        "liveNow": False,
        "weekStart": "",
        "links": [_link(other) for other in others if other.uid != dashboard.uid],
        "annotations": {"list": [_own_annotations(), _starts()]},
        "templating": {"list": [_variable(one) for one in dashboard.variables]},
        "panels": list(_panels(dashboard.rows)),
    }


def _link(other: Dashboard) -> Json:
    return {
        "type": "link",
        "title": other.title.removeprefix("Olympus: "),
        "url": f"/d/{other.uid}",
        "icon": "dashboard",
        "tooltip": other.about,
        "tags": [],
        "asDropdown": False,
        "includeVars": False,
        "keepTime": True,
        "targetBlank": False,
    }


def _own_annotations() -> Json:
    return {
        "builtIn": 1,
        "name": "Annotations & Alerts",
        "type": "dashboard",
        "datasource": {"type": "grafana", "uid": "-- Grafana --"},
        "enable": True,
        "hide": True,
        "iconColor": "rgba(0, 211, 255, 1)",
    }


def _starts() -> Json:
    """A mark wherever a process started."""
    return {
        "name": "Starts",
        "datasource": SOURCE,
        "enable": True,
        "hide": False,
        "iconColor": "blue",
        "expr": 'olympus_process_start_time_seconds{service!="model.runner"} * 1000',
        "useValueForTime": True,
        "step": "15s",
        "titleFormat": "{{service}} started",
        "textFormat": "{{worker}}",
        "tagKeys": "service",
    }


def _variable(variable: Variable) -> Json:
    return {
        "name": variable.name,
        "label": variable.title,
        "type": "query",
        "datasource": SOURCE,
        "definition": variable.query,
        "query": {"qryType": 1, "query": variable.query, "refId": f"variable-{variable.name}"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
        "regex": "",
        "hide": 0,
        "skipUrlSync": False,
    }


def _panels(rows: Iterable[Row]) -> Iterable[Json]:
    y = 0
    number = 0
    for row in rows:
        number += 1
        heading: Json = {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": row.is_collapsed,
            "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
            "panels": [],
        }
        y += 1
        placed = []
        x = tallest = 0
        for panel in row.panels:
            number += 1
            if x + panel.width > WIDTH:
                x, y, tallest = 0, y + tallest, 0
            placed.append(_panel(panel, number, {"x": x, "y": y, "w": panel.width, "h": panel.height}))
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
        if row.is_collapsed:
            heading["panels"] = placed
            yield heading
        else:
            yield heading
            yield from placed


def _panel(panel: Panel, number: int, place: Json) -> Json:
    made: Json = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": _overrides(panel)},
        "options": _options(panel),
        "targets": [_target(panel, query, index) for index, query in enumerate(panel.queries)],
    }
    if panel.kind == "table":
        made["transformations"] = [_columns(panel)]
    if panel.link:
        made["links"] = [{"title": "More", "url": f"/d/{panel.link}?${{__url_time_range}}", "targetBlank": False}]
    return made


def _target(panel: Panel, query: str, index: int) -> Json:
    expression, _, legend = query.partition(" -> ")
    is_now = panel.kind in ("stat", "table", "bargauge")
    return {
        "refId": chr(ord("A") + index),
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": expression,
        "legendFormat": legend or "__auto",
        # A stat draws its past below the number, so it needs the range as well.
        "instant": is_now and panel.kind != "stat",
        "range": not is_now or panel.kind == "stat",
        "format": {"table": "table", "heatmap": "heatmap"}.get(panel.kind, "time_series"),
    }


def _defaults(panel: Panel) -> Json:
    defaults: Json = {
        "unit": panel.unit,
        "color": {"mode": "thresholds" if panel.kind in ("stat", "bargauge") else "palette-classic-by-name"},
        "thresholds": {"mode": "absolute", "steps": [{"color": colour, "value": at} for at, colour in panel.steps]},
        "mappings": [],
    }
    for name, value in (("min", panel.least), ("max", panel.most), ("decimals", panel.decimals)):
        if value is not None:
            defaults[name] = value
    if panel.nothing:
        defaults["noValue"] = panel.nothing
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "drawStyle": "line",
            "lineInterpolation": "linear",
            "lineWidth": 1,
            "fillOpacity": 40 if panel.is_stacked else 8,
            "gradientMode": "none",
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"group": "A", "mode": "normal" if panel.is_stacked else "none"},
            "thresholdsStyle": {"mode": "dashed" if panel.has_line_at_steps else "off"},
        }
    elif panel.kind == "state-timeline":
        defaults["color"] = {"mode": "thresholds"}
        defaults["custom"] = {"fillOpacity": 70, "lineWidth": 0}
    elif panel.kind == "table":
        defaults["custom"] = {"align": "auto", "cellOptions": {"type": "auto"}, "filterable": True}
    return defaults


def _overrides(panel: Panel) -> list[Json]:
    if panel.kind == "table":
        coloured = {"id": "custom.cellOptions", "value": {"type": "color-background", "mode": "basic"}}
        severities = {
            "id": "mappings",
            "value": [
                {
                    "type": "value",
                    "options": {
                        "critical": {"color": "red", "index": 0},
                        "warning": {"color": "orange", "index": 1},
                        "info": {"color": "blue", "index": 2},
                    },
                }
            ],
        }
        return [{"matcher": {"id": "byName", "options": "severity"}, "properties": [severities, coloured]}]
    if panel.kind != "timeseries":
        return []
    legends = [query.partition(" -> ")[2] for query in panel.queries]
    return [
        {
            "matcher": {"id": "byRegexp", "options": pattern},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
        }
        for pattern, colour in COLOURS.items()
        if any(_COLOURED.search(legend) or re.fullmatch(pattern.strip("/"), legend) for legend in legends)
    ]


def _options(panel: Panel) -> Json:
    newest = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    if panel.kind == "stat":
        return {
            "reduceOptions": newest,
            "colorMode": "background" if panel.steps != PLAIN else "value",
            "graphMode": "area",
            "textMode": "auto",
            "justifyMode": "auto",
            "orientation": "auto",
        }
    if panel.kind == "bargauge":
        return {
            "reduceOptions": newest,
            "displayMode": "gradient",
            "orientation": "horizontal",
            "showUnfilled": True,
            "valueMode": "color",
        }
    if panel.kind == "table":
        return {"showHeader": True, "cellHeight": "sm", "footer": {"show": False, "reducer": ["sum"], "fields": ""}}
    if panel.kind == "heatmap":
        return {
            "calculate": False,
            "cellGap": 1,
            "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5, "fill": "dark-orange"},
            "filterValues": {"le": 1e-9},
            "legend": {"show": True},
            "rowsFrame": {"layout": "auto"},
            "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": True},
            "yAxis": {"axisPlacement": "left", "reverse": False, "unit": panel.unit},
        }
    legend = {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []}
    if panel.kind == "state-timeline":
        return {
            "legend": legend,
            "mergeValues": True,
            "rowHeight": 0.8,
            "showValue": "never",
            "alignValue": "left",
            "tooltip": {"mode": "single", "sort": "none"},
        }
    return {
        "legend": {**legend, "displayMode": "table", "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _columns(panel: Panel) -> Json:
    """Shows the named columns alone, in their order."""
    return {
        "id": "organize",
        "options": {
            "includeByName": dict.fromkeys(panel.names, True),
            "indexByName": {name: index for index, name in enumerate(panel.names)},
            "renameByName": {name: heading for name, heading in panel.names.items() if heading != name},
            "excludeByName": {name: True for name in ("Time", "__name__", "Value") if name not in panel.names},
        },
    }
