"""Binds the operations on feedback, exchanges and opportunities to a worker."""

from __future__ import annotations

from bus.worker import Call, Worker
from schemas.bodies import learning as bodies
from workers.learning.detection.detection import Detection


def register(worker: Worker, detection: Detection) -> None:
    """Make `worker` answer `learning.feedback`, `learning.exchange.*` and `learning.opportunity.*`."""

    @worker.handles("learning.feedback")
    async def feedback(request: bodies.Feedback, call: Call) -> bodies.FeedbackTaken:
        return await detection.take_feedback(request, call)

    @worker.handles("learning.exchange.list")
    async def exchanges(request: bodies.ExchangeList, call: Call) -> bodies.Exchanges:
        return await detection.exchanges.list_all(request)

    @worker.handles("learning.exchange.delete")
    async def delete(request: bodies.ExchangeDelete, call: Call) -> bodies.ExchangesDeleted:
        return await detection.delete_exchanges(request)

    @worker.handles("learning.opportunity.list")
    async def opportunities(request: bodies.OpportunityList, call: Call) -> bodies.Opportunities:
        return await detection.opportunities.list_all(request)

    @worker.handles("learning.opportunity.add")
    async def add(request: bodies.OpportunityAdd, call: Call) -> bodies.Opportunity:
        return await detection.add_opportunity(request)

    @worker.handles("learning.opportunity.get")
    async def get(request: bodies.OpportunityGet, call: Call) -> bodies.Opportunity:
        return await detection.opportunities.get(request.opportunity_id)

    @worker.handles("learning.opportunity.close")
    async def close(request: bodies.OpportunityClose, call: Call) -> bodies.Opportunity:
        return await detection.opportunities.close(request)

    @worker.handles("learning.opportunity.dismiss")
    async def dismiss(request: bodies.OpportunityDismiss, call: Call) -> bodies.Opportunity:
        return await detection.opportunities.dismiss(request)
