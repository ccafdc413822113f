"""UnifiedUtilsAgent (7118): cleans up folders, which are Olympus' own alone. Replies have no `status`."""

from __future__ import annotations

from typing import Any, Final

from schemas.bodies.upkeep import CleanedUp, Cleanup
from workers.gateway.legacy.agent import Action, Agent, Fields, Handle, Reply
from workers.gateway.legacy.house import House

NAME: Final = "UnifiedUtilsAgent"


def _cleanup(what: str) -> Handle:
    async def clean(ask: Fields, house: House) -> Reply:
        return _told(await house.ask(f"utils.cleanup_{what}", Cleanup()))

    return clean


async def cleanup_browser_cache(ask: Fields, house: House) -> Reply:
    """Browsers' folders belong to their users: nothing is touched."""
    return {"browsers_cleaned": [], "files_removed": 0, "bytes_freed": 0, "errors": []}


async def run_windows_disk_cleanup(ask: Fields, house: House) -> Reply:
    message = "Windows disk cleanup is only there on Windows"
    return {"status": "error", "message": message, "error": message, "errors": [message]}


async def cleanup_system(ask: Fields, house: House) -> Reply:
    cleaned = await house.ask("utils.cleanup_system", Cleanup())
    return {
        "temp_files": _told(cleaned.temp_files),
        "logs": _told(cleaned.logs),
        "cache": _told(cleaned.cache),
        "browser_cache": await cleanup_browser_cache(ask, house),
    }


def _told(cleaned: CleanedUp) -> dict[str, Any]:
    return {"files_removed": cleaned.files_removed, "bytes_freed": cleaned.bytes_freed, "errors": cleaned.errors}


async def health(house: House) -> dict[str, Any]:
    endpoint = house.endpoints.get(NAME)
    return {"agent": NAME, "port": endpoint.port if endpoint else AGENT.ports[0]}


AGENT = Agent(
    name=NAME,
    service="memory",
    kind="utils",
    ports=(7118,),
    health_ports=(8118,),
    actions={
        "cleanup_temp_files": Action(_cleanup("temp_files")),
        "cleanup_logs": Action(_cleanup("logs")),
        "cleanup_cache": Action(_cleanup("cache")),
        "cleanup_browser_cache": Action(cleanup_browser_cache),
        "run_windows_disk_cleanup": Action(run_windows_disk_cleanup),
        "cleanup_system": Action(cleanup_system),
    },
    health=health,
)
