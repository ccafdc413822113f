"""Binds the operations of trials to a worker: compare, evaluate, benchmark, A/B tests and measurements."""

from __future__ import annotations

from bus.records import Records
from bus.settings import Settings
from bus.worker import Call, Worker
from schemas.bodies import model_trials as bodies
from workers.models.trials.abtests import AbTesting
from workers.models.trials.benchmark import Benchmarking
from workers.models.trials.compare import Comparing
from workers.models.trials.evaluate import Evaluating
from workers.models.trials.measurements import Measurements
from workers.models.trials.results import Results
from workers.models.trials.running import Running


class Trials:
    """All trials of one worker. `start` after the records are open, `stop` before the worker and the records go."""

    def __init__(self, settings: Settings, worker: Worker, records: Records) -> None:
        client = worker.client
        self.running = Running()
        self.comparing = Comparing(client, records, self.running)
        self.results = Results(client, records)
        self.evaluating = Evaluating(settings, client, self.results, self.running)
        self.benchmarking = Benchmarking(client, self.running)
        self.abtesting = AbTesting(records)
        self.measurements = Measurements(records)

    async def start(self) -> None:
        """Mark what an earlier end of the service interrupted."""
        await self.results.start()

    async def stop(self) -> None:
        """End what runs, and note so; nothing new begins."""
        await self.running.stop()
        await self.evaluating.stop()


def register(worker: Worker, trials: Trials) -> None:
    """Make `worker` answer every operation of these parts."""
    _register_comparing(worker, trials.comparing)
    _register_evaluating(worker, trials.evaluating, trials.results)
    _register_measuring(worker, trials.benchmarking, trials.measurements)
    _register_abtesting(worker, trials.abtesting)


def _register_comparing(worker: Worker, comparing: Comparing) -> None:
    @worker.handles("model.compare")
    async def compare(request: bodies.Compare, call: Call) -> bodies.Comparison:
        return await comparing.compare(request, call)

    @worker.handles("model.compare.pick")
    async def pick(request: bodies.ComparePick, call: Call) -> bodies.Comparison:
        return await comparing.pick(request)

    @worker.handles("model.compare.get")
    async def get(request: bodies.CompareGet, call: Call) -> bodies.Comparison:
        return await comparing.get(request)


def _register_evaluating(worker: Worker, evaluating: Evaluating, results: Results) -> None:
    @worker.handles("model.evaluate")
    async def evaluate(request: bodies.Evaluate, call: Call) -> bodies.Evaluation:
        return await evaluating.evaluate(request, call)

    @worker.handles("model.evaluation.get")
    async def get(request: bodies.EvaluationGet, call: Call) -> bodies.EvaluationReply:
        return await results.get(request)

    @worker.handles("model.evaluation.list")
    async def list_evaluations(request: bodies.EvaluationList, call: Call) -> bodies.Evaluations:
        return await results.list(request)

    @worker.handles("model.evaluation.record")
    async def record(request: bodies.EvaluationRecord, call: Call) -> bodies.Evaluation:
        return await results.record(request, call.id)


def _register_measuring(worker: Worker, benchmarking: Benchmarking, measurements: Measurements) -> None:
    @worker.handles("model.benchmark")
    async def benchmark(request: bodies.Benchmark, call: Call) -> bodies.Benchmarked:
        return await benchmarking.benchmark(request, call)

    @worker.handles("model.metric.record")
    async def record(request: bodies.MetricRecord, call: Call) -> bodies.MetricRecorded:
        return await measurements.record(request, call.id)

    @worker.handles("model.metric.list")
    async def list_metrics(request: bodies.MetricList, call: Call) -> bodies.Metrics:
        return await measurements.list(request)


def _register_abtesting(worker: Worker, abtesting: AbTesting) -> None:
    @worker.handles("model.abtest.start")
    async def start(request: bodies.AbTestStart, call: Call) -> bodies.AbTestResult:
        return await abtesting.start(request, call.id)

    @worker.handles("model.abtest.assign")
    async def assign(request: bodies.AbTestAssign, call: Call) -> bodies.AbTestAssigned:
        return await abtesting.assign(request)

    @worker.handles("model.abtest.record")
    async def record(request: bodies.AbTestRecord, call: Call) -> bodies.AbTestResult:
        return await abtesting.record(request, call.id)

    @worker.handles("model.abtest.result")
    async def result(request: bodies.AbTestGet, call: Call) -> bodies.AbTestResult:
        return await abtesting.result(request)

    @worker.handles("model.abtest.stop")
    async def stop(request: bodies.AbTestStop, call: Call) -> bodies.AbTestResult:
        return await abtesting.stop(request)

    @worker.handles("model.abtest.list")
    async def list_tests(request: bodies.AbTestList, call: Call) -> bodies.AbTests:
        return await abtesting.list(request)
