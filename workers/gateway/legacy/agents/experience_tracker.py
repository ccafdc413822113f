"""ExperienceTracker (7112): what happened, by importance, and what the store behind it (7110) understood."""

from __future__ import annotations

from workers.gateway.legacy.agent import Action, Agent
from workers.gateway.legacy.agents.experiences import TRACKER, get_experiences, track_experience
from workers.gateway.legacy.agents.health_sockets import health_socket
from workers.gateway.legacy.agents.memory_manager import ACTIONS

AGENT = Agent(
    name=TRACKER,
    service="memory",
    kind="experience_tracker",
    ports=(7112,),
    health_ports=(8112, 7113),
    actions={
        "track_experience": Action(track_experience),
        "get_experiences": Action(get_experiences),
        **ACTIONS,
    },
    health_socket=health_socket(TRACKER),
)
