"""Binds the operations of sessions, contexts, suggestions and the memory tool to a worker."""

from __future__ import annotations

from bus.worker import Call, Worker
from schemas.bodies import sessions as bodies
from workers.memory.sessions.bridge import Bridger
from workers.memory.sessions.build import ContextBuilder
from workers.memory.sessions.contexts import Contexts
from workers.memory.sessions.parts import SessionParts
from workers.memory.sessions.proactive import Monitor
from workers.memory.sessions.sessions import Sessions
from workers.memory.sessions.tool import MemoryTool


def register(worker: Worker, parts: SessionParts) -> None:
    """Make `worker` answer every operation of this folder."""
    register_sessions(worker, parts.sessions, parts.bridger)
    register_contexts(worker, parts.contexts, parts.builder)
    register_monitor(worker, parts.monitor)
    register_tool(worker, parts.tool)


def register_sessions(worker: Worker, sessions: Sessions, bridger: Bridger) -> None:
    """`memory.session.*`."""

    @worker.handles("memory.session.create")
    async def create(request: bodies.SessionCreate, call: Call) -> bodies.Session:
        return await sessions.create(request, call.id)

    @worker.handles("memory.session.get")
    async def get(request: bodies.SessionGet, call: Call) -> bodies.Session:
        return await sessions.get(request)

    @worker.handles("memory.session.append")
    async def append(request: bodies.SessionAppend, call: Call) -> bodies.SessionAppended:
        return await sessions.append(request, call.id)

    @worker.handles("memory.session.history")
    async def history(request: bodies.SessionHistory, call: Call) -> bodies.SessionTurns:
        return await sessions.history(request)

    @worker.handles("memory.session.update")
    async def update(request: bodies.SessionUpdate, call: Call) -> bodies.Session:
        return await sessions.update(request, call.id)

    @worker.handles("memory.session.close")
    async def close(request: bodies.SessionClose, call: Call) -> bodies.SessionClosed:
        return await sessions.close(request, call.id)

    @worker.handles("memory.session.list")
    async def list_sessions(request: bodies.SessionList, call: Call) -> bodies.Sessions:
        return await sessions.listing(request)

    @worker.handles("memory.session.bridge")
    async def bridge(request: bodies.SessionBridge, call: Call) -> bodies.Bridge:
        return await bridger.bridge(request)


def register_contexts(worker: Worker, contexts: Contexts, builder: ContextBuilder) -> None:
    """`memory.context.*`."""

    @worker.handles("memory.context.put")
    async def put(request: bodies.ContextPut, call: Call) -> bodies.Context:
        return await contexts.put(request, call.id)

    @worker.handles("memory.context.get")
    async def get(request: bodies.ContextGet, call: Call) -> bodies.Context:
        return await contexts.get(request)

    @worker.handles("memory.context.delete")
    async def delete(request: bodies.ContextDelete, call: Call) -> bodies.ContextDeleted:
        return await contexts.delete(request, call.id)

    @worker.handles("memory.context.list")
    async def list_contexts(request: bodies.ContextList, call: Call) -> bodies.Contexts:
        return await contexts.listing(request)

    @worker.handles("memory.context.build")
    async def build(request: bodies.ContextBuild, call: Call) -> bodies.BuiltContext:
        return await builder.build(request)


def register_monitor(worker: Worker, monitor: Monitor) -> None:
    """`memory.suggest.*`."""

    @worker.handles("memory.suggest.list")
    async def list_suggestions(request: bodies.SuggestList, call: Call) -> bodies.Suggestions:
        if call.caller is None:
            return await monitor.listing(request)
        return await monitor.listing(request, call.caller.may_touch)

    @worker.handles("memory.suggest.dismiss")
    async def dismiss(request: bodies.SuggestDismiss, call: Call) -> bodies.SuggestionDismissed:
        return await monitor.dismiss(request, call.id)

    @worker.handles("memory.suggest.switch")
    async def switch(request: bodies.SuggestSwitch, call: Call) -> bodies.SuggestSwitched:
        return await monitor.switch(request, call.id)


def register_tool(worker: Worker, tool: MemoryTool) -> None:
    """`memory.tool.*`."""

    @worker.handles("memory.tool.schemas")
    async def schemas(request: bodies.ToolSchemas, call: Call) -> bodies.ToolSchemaList:
        return await tool.schemas(request)

    @worker.handles("memory.tool.call")
    async def call_tool(request: bodies.ToolCall, call: Call) -> bodies.ToolResult:
        if call.caller is None:
            return await tool.call(request, call.id)
        return await tool.call(request, call.id, call.caller.may_touch)
