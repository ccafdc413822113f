"""Binds the operations on what is in memory to a worker."""

from __future__ import annotations

from bus.worker import Worker
from workers.models.loading import Loading


def register(worker: Worker, loading: Loading) -> None:
    """Make `worker` answer the operations that load, keep and watch models. Those that use one are bound by the service."""
    worker.handle("model.load", loading.load)
    worker.handle("model.unload", loading.unload)
    worker.handle("model.preload", loading.preload)
    worker.handle("model.keep", loading.keep)
    worker.handle("model.stats", loading.stats)
    worker.handle("model.usage", loading.usage)
    worker.handle("model.predict", loading.predict)
    worker.handle("model.conversation.clear", loading.clear_conversation)
