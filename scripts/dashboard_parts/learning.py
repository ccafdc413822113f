"""The dashboard Learning: what there is to learn, how trainings do, and what became of them."""

from __future__ import annotations

from dashboard_parts.panels import OK, Dashboard, Panel, Row, above, areas, lines, stat

_NOW = Row(
    "Now",
    (
        stat(
            "Worth learning",
            'sum(olympus_learning_opportunities{state="open"})',
            "short",
            "Opportunities that nobody has taken up.",
            steps=OK,
            width=4,
        ),
        stat(
            "Trainings running",
            'sum(olympus_learning_jobs{state="training"})',
            "short",
            "Trainings that run now.",
            steps=OK,
            width=4,
        ),
        stat(
            "Progress",
            "max(olympus_learning_training_progress_ratio)",
            "percentunit",
            "Of the training that runs.",
            steps=OK,
            width=4,
            nothing="no training runs",
        ),
        stat(
            "Failed",
            'sum(increase(olympus_learning_trainings_total{outcome="failed"}[$__range]))',
            "short",
            "Trainings that failed in the time shown.",
            steps=above(1),
            width=4,
            decimals=0,
        ),
        stat(
            "Put to work",
            "sum(increase(olympus_learning_promotions_total[$__range]))",
            "short",
            "Adapters promoted in the time shown.",
            steps=OK,
            width=4,
            decimals=0,
        ),
        stat(
            "Taken back",
            "sum(increase(olympus_learning_rollbacks_total[$__range]))",
            "short",
            "Adapters taken out of service in the time shown.",
            steps=above(1),
            width=4,
            decimals=0,
        ),
    ),
)

_TRAINING = Row(
    "Training",
    (
        lines(
            "Loss",
            "max(olympus_learning_training_loss) -> loss",
            "short",
            "Of the last step. It should fall, quickly at first.",
            nothing="no training runs",
        ),
        lines(
            "Progress",
            "max(olympus_learning_training_progress_ratio) -> progress",
            "percentunit",
            "How far the running training is.",
            most=1,
            nothing="no training runs",
        ),
        lines(
            "Tokens learned from",
            "sum(rate(olympus_learning_trained_tokens_total[$__rate_interval])) -> tokens",
            "short",
            "Each second. 0 while a training runs: it waits, or it hangs.",
        ),
        areas(
            "Trainings by state",
            "sum by (state) (olympus_learning_jobs) -> {{state}}",
            "short",
            "All that are known.",
        ),
        lines(
            "Trainings ended",
            "sum by (outcome) (increase(olympus_learning_trainings_total[$__rate_interval])) -> {{outcome}}",
            "short",
            "By how they ended.",
        ),
        Panel(
            "Learning waits for",
            ('max by (dependency) (olympus_worker_degraded{service="learning"}) or vector(0) -> waits {{dependency}}',),
            "short",
            "What the learning service lacks at the moment.",
            "state-timeline",
            steps=((None, "green"), (1, "orange")),
        ),
    ),
)

_RESULTS = Row(
    "What became of it",
    (
        areas(
            "Opportunities",
            "sum by (state) (olympus_learning_opportunities) -> {{state}}",
            "short",
            "Things worth learning, by state.",
            width=6,
        ),
        lines(
            "Answers looked at",
            (
                "sum(rate(olympus_learning_exchanges_total[$__rate_interval])) -> looked at",
                "sum(rate(olympus_learning_exchanges_dropped_total[$__rate_interval])) -> dropped",
            ),
            "ops",
            "Questions and answers that were searched for something to learn.",
            width=6,
        ),
        lines(
            "Gate",
            "sum by (outcome) (increase(olympus_learning_gates_total[$__rate_interval])) -> {{outcome}}",
            "short",
            "Only what helps, and harms nothing, passes.",
            width=6,
        ),
        lines(
            "At work",
            (
                "sum(increase(olympus_learning_promotions_total[$__rate_interval])) -> put to work",
                "sum(increase(olympus_learning_rollbacks_total[$__rate_interval])) -> taken back",
                "sum(olympus_learning_adapters_watched) -> watched",
            ),
            "short",
            "Adapters promoted and rolled back, and those whose work is watched in live traffic.",
            width=6,
        ),
    ),
)

DASHBOARD = Dashboard(
    "olympus-learning",
    "Olympus: Learning",
    "What there is to learn, how trainings do, and what became of them.",
    (_NOW, _TRAINING, _RESULTS),
)
