"""One request on its way from the model service to a runner over the bus, and its answer on the way back."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from bus.worker import Call, Worker
from schemas.envelope import Headers
from schemas.errors import WorkerLost
from schemas.purpose import PURPOSE

# Marks a request this service passed on, so that it is not passed on again when its runner has just vanished and the
# broker brings it back to the plain subject.
RELAYED: Final = "models-relayed"

# For whom it is passed on. Prediction learns from it and nothing is decided on its word, so nobody checks it.
CALLER: Final = "models-caller"
_CALLER_CHARS: Final = 64

# Id of the request that is passed on, as its caller knows it.
ORIGIN: Final = "models-origin"

# The end of a runner's process is often heard before its last words, which come through the broker.
_LAST_WORDS_S: Final = 1.0

# Deadline of a request passed on for a caller who named none.
_NO_DEADLINE_S: Final = 86_400.0


# Headers of the caller's that a request passed on keeps. Its place in the trace is another: below the caller's.
_PASSED_ON: Final = frozenset({"priority", PURPOSE})


def caller_of(call: Call) -> str:
    """Who asks, also where this service passed the request on; "" where nobody signs in."""
    own = call.caller.user_id if call.caller is not None else ""
    name = (call.headers.get(CALLER) or own) if _is_ours(call) else own
    return name[:_CALLER_CHARS] if isinstance(name, str) else ""


def reply_id_of(call: Call) -> str:
    """Id of a request as its caller knows it, in hexadecimal."""
    origin = call.headers.get(ORIGIN)
    return origin if isinstance(origin, str) and origin and _is_ours(call) else call.id.hex()


def is_relayed(call: Call) -> bool:
    """True for a request that the model service passed on."""
    return bool(call.headers.get(RELAYED)) and _is_ours(call)


def _is_ours(call: Call) -> bool:
    """Where people sign in, only this home's own processes speak for others."""
    return call.caller is None or call.caller.is_admin


class Relay:
    """`is_fresh` until a part of the answer has been passed back."""

    def __init__(self, subject: str, request: Any, call: Call) -> None:
        self.is_fresh = True
        self._subject = subject
        self._request = request
        self._call = call

    async def run(self, worker: Worker) -> Any:
        """Pass the request on and the parts back; returns the final reply, raises what the runner's answer says."""
        call = self._call
        timeout_s = call.deadline_at - time.time() if call.deadline_at else _NO_DEADLINE_S
        headers: Headers = {RELAYED: True, CALLER: caller_of(call), ORIGIN: reply_id_of(call)}
        headers.update((name, value) for name, value in call.headers.items() if name in _PASSED_ON)
        async with worker.client.stream(
            self._subject, self._request, timeout_s=max(timeout_s, 0.0), headers=headers
        ) as parts:
            async for part in parts:
                self.is_fresh = False
                await call.partial(part)
            return parts.final


class Relays:
    """The relays of each runner, so that those of a process that ended do not wait for a broker to notice."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._gates: dict[int, set[asyncio.Timeout]] = {}

    async def run(self, relay: Relay, runner: int) -> Any:
        """`relay.run`. Raises WorkerLost also when the runner's process ends under it."""
        gates = self._gates.setdefault(runner, set())
        gate = asyncio.timeout(None)
        gates.add(gate)
        try:
            async with gate:
                return await relay.run(self._worker)
        except TimeoutError as error:
            raise WorkerLost("the model's process ended while it worked on the request") from error
        finally:
            gates.discard(gate)
            if not gates and self._gates.get(runner) is gates:
                del self._gates[runner]

    def on_exit(self, runner: int) -> None:
        """The process of a runner ended."""
        at = asyncio.get_running_loop().time() + _LAST_WORDS_S
        for gate in self._gates.pop(runner, ()):
            gate.reschedule(at)
