"""What one would write without Olympus: FastAPI over redis-py. It knows nothing of this project."""

from __future__ import annotations

import os

import redis.asyncio
from fastapi import FastAPI, HTTPException

app = FastAPI()

# redis.asyncio: with the blocking client FastAPI runs each request in a thread, and reached half as many here.
store = redis.asyncio.Redis(port=int(os.environ["REDIS_PORT"]), decode_responses=True)


@app.get("/kv/{key}")
async def entry(key: str) -> dict[str, str]:
    """One value."""
    value = await store.get(key)
    if value is None:
        raise HTTPException(404, "no such key")
    return {"key": key, "value": str(value)}


@app.post("/kv/{key}")
async def write(key: str, body: dict[str, str]) -> dict[str, str]:
    """Keep one value."""
    await store.set(key, body["value"])
    return {"key": key}
