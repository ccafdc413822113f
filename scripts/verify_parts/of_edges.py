"""HTTP: every port with its health, its page, its figures and its words for what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from verify_parts.checklist import Check, Group, Skipped
from verify_parts.probe import Probe

_SERVICES: Final = ("memory", "models", "learning")

# What the OpenAPI page of each port must at least have.
_PATHS: Final = {
    "memory": ("/kv/{key}", "/doc/{doc_id}", "/session/{session_id}", "/embedding/search"),
    "models": ("/models", "/v1/chat/completions", "/gpu/status", "/lease"),
    "learning": ("/opportunities", "/training", "/feedback", "/schedule"),
}


def _health(service: str, purpose: str) -> Callable[[Probe], None]:
    def check(probe: Probe) -> None:
        answer = probe.http("GET", probe.port(service, purpose, "http"), "/health")
        probe.expect(answer.status == 200, f"it answered {answer.status}")
        probe.expect(answer.body["status"] == "ok", f"it is {answer.body['status']}")

    return check


def _page(service: str) -> Callable[[Probe], None]:
    def check(probe: Probe) -> None:
        port = probe.port(service, "rest", "http")
        answer = probe.http("GET", port, "/openapi.json")
        probe.expect(answer.status == 200 and answer.body["openapi"].startswith("3."), "no OpenAPI 3 page")
        paths = answer.body["paths"]
        missing = [path for path in _PATHS[service] if path not in paths]
        probe.note(f"{len(paths)} paths")
        probe.expect(not missing, f"not in the page: {', '.join(missing)}")
        probe.expect(probe.http("GET", port, "/docs").status == 200, "no /docs")

    return check


def _figures(service: str) -> Callable[[Probe], None]:
    def check(probe: Probe) -> None:
        answer = probe.http("GET", probe.port(service, "rest", "http"), "/metrics")
        probe.expect(answer.status == 200 and answer.media_type == "text/plain", f"{answer.status} {answer.media_type}")
        samples = [line for line in answer.body.splitlines() if line and not line.startswith("#")]
        probe.note(f"{len(samples)} figures")
        probe.expect(samples, "no figure")
        probe.expect(all(_is_number(line.rpartition(" ")[2]) for line in samples), "a figure is no number")

    return check


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _problems(service: str) -> Callable[[Probe], None]:
    def check(probe: Probe) -> None:
        port = probe.port(service, "rest", "http")
        answer = probe.http("GET", port, f"/verify/{probe.ns}")
        probe.expect(answer.status == 404, f"a path nobody has is answered {answer.status}")
        probe.expect(answer.media_type == "application/problem+json", f"its media type is {answer.media_type}")
        missing = {"type", "title", "status", "detail", "code"} - set(answer.body)
        probe.expect(not missing, f"the problem lacks {', '.join(sorted(missing))}")
        wrong = probe.http("PATCH", port, "/health")
        probe.expect(wrong.status == 405, f"a wrong method is answered {wrong.status}")

    return check


def signing(probe: Probe) -> None:
    if not probe.settings.auth.required:
        raise Skipped("auth.required is off: nobody has to sign in")
    port = probe.port("memory", "rest", "http")
    answer = probe.http("GET", port, f"/kv?ns={probe.ns}", token="verify")
    probe.expect(answer.status == 401, f"a token of no one is answered {answer.status}")


_LINES: Final = (
    ("/health says ok", lambda service: _health(service, "rest")),
    ("the health port says ok", lambda service: _health(service, "health")),
    ("/openapi.json has its paths", _page),
    ("/metrics has figures", _figures),
    ("what is wrong is a problem with a code", _problems),
)

GROUP = Group(
    "rest",
    "/health, /openapi.json, /metrics and problems of every HTTP port",
    (
        *(Check(f"{service}: {name}", make(service)) for service in _SERVICES for name, make in _LINES),
        Check("without a good token nothing is served", signing),
    ),
)
