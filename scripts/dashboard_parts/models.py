"""The dashboard Models and GPU: what is loaded, how fast it answers, and what devices hold."""

from __future__ import annotations

from dashboard_parts.panels import (
    OK,
    Dashboard,
    Panel,
    Row,
    Variable,
    above,
    areas,
    bad_above,
    lines,
    quantiles,
    stat,
)

_M = 'model=~"$model"'
_D = 'device=~"$device"'

_NOW = Row(
    "Now",
    (
        stat("Known", "sum(olympus_models_known)", "short", "Models in the catalogue.", steps=OK),
        stat("In memory", 'sum(olympus_models_loaded{state="serving"})', "short", "Models that serve.", steps=OK),
        stat(
            "Loading",
            'sum(olympus_models_loaded{state="loading"})',
            "short",
            "Models on their way into memory.",
            steps=OK,
        ),
        stat(
            "Waiting for a load",
            "sum(olympus_model_requests_waiting)",
            "short",
            "Requests whose model is not in memory yet.",
            steps=above(1, 10),
        ),
        stat(
            "Quarantined",
            "sum(olympus_models_quarantined)",
            "short",
            "Models that are not loaded any more, because their runners kept dying.",
            steps=bad_above(1),
        ),
        stat(
            "Tokens",
            'sum(rate(olympus_model_tokens_total{direction="completion"}[$__rate_interval])) or vector(0)',
            "short",
            "Made each second, by all models.",
            steps=OK,
            decimals=1,
        ),
        stat(
            "Fullest device",
            "max(device:olympus_device_memory_used:ratio)",
            "percentunit",
            "Memory used by anybody, of the device that is fullest.",
            steps=above(0.9, 0.97),
        ),
        stat(
            "Hottest GPU",
            "max(olympus_device_temperature_celsius)",
            "celsius",
            "Nothing where no GPU tells its temperature.",
            steps=above(75, 85),
            nothing="no GPU",
        ),
    ),
)

_ANSWERS = Row(
    "Answers",
    (
        lines(
            "Tokens made",
            f'sum by (model) (rate(olympus_model_tokens_total{{{_M}, direction="completion"}}[$__rate_interval])) -> {{{{model}}}}',
            "short",
            "Each second, by model.",
        ),
        lines(
            "Tokens read",
            (
                f'sum by (model) (rate(olympus_model_tokens_total{{{_M}, direction="prompt"}}[$__rate_interval])) -> {{{{model}}}}',
                f'sum by (model) (rate(olympus_model_tokens_total{{{_M}, direction="cached"}}[$__rate_interval])) -> {{{{model}}}} cached',
            ),
            "short",
            "Of prompts, each second; cached ones needed no work.",
        ),
        areas(
            "Generations",
            f"sum by (model, outcome) (rate(olympus_model_generations_total{{{_M}}}[$__rate_interval])) -> {{{{model}}}} {{{{outcome}}}}",
            "reqps",
            "Ended, by model and outcome.",
        ),
        lines(
            "Time to the first token",
            quantiles(f"olympus_model_first_token_seconds_bucket{{{_M}}}", "model", (0.5, 0.95)),
            "s",
            "What a person waits until something appears.",
        ),
        lines(
            "Time of a generation",
            quantiles(f"olympus_model_generation_duration_seconds_bucket{{{_M}}}", "model", (0.5, 0.95)),
            "s",
            "From request to last token.",
        ),
        lines(
            "Requests in flight",
            f"sum by (model) (olympus_model_requests_in_flight{{{_M}}}) -> {{{{model}}}}",
            "short",
            "That a loaded model works on.",
        ),
    ),
)

_SWAPS = Row(
    "Loads and swaps",
    (
        lines(
            "Models in memory",
            "sum by (state) (olympus_models_loaded) -> {{state}}",
            "short",
            "Loading, serving, unloading.",
            width=6,
        ),
        lines(
            "Loads",
            (
                "sum by (outcome) (increase(olympus_model_loads_total[$__rate_interval])) -> {{outcome}}",
                "sum(increase(olympus_model_runner_crashes_total[$__rate_interval])) -> crash",
            ),
            "short",
            "Loads that ended, and runners that died.",
            width=6,
        ),
        lines(
            "Time of a load",
            quantiles("olympus_model_load_duration_seconds_bucket", which=(0.5, 0.95)),
            "s",
            "From the decision to load to a model that serves.",
            width=6,
        ),
        lines(
            "Models that left memory",
            "sum by (reason) (increase(olympus_model_unloads_total[$__rate_interval])) -> {{reason}}",
            "short",
            "room: another needed it. Many of these mean that the models do not fit together.",
            width=6,
        ),
        lines(
            "Loaded ahead of need",
            "sum by (outcome) (increase(olympus_model_preloads_total[$__rate_interval])) -> {{outcome}}",
            "short",
            "hit: somebody asked for it soon after. wasted: nobody did.",
            width=6,
        ),
        lines(
            "Requests waiting for a load",
            "sum(olympus_model_requests_waiting) -> waiting",
            "short",
            "Falls to 0 when the model serves.",
            width=6,
        ),
        lines(
            "Adapters",
            "sum by (state) (olympus_model_adapters) -> {{state}}",
            "short",
            "Attached to a loaded model, and those that answer by default.",
            width=6,
        ),
        areas(
            "Memory of models",
            f"sum by (model, device) (olympus_model_memory_bytes{{{_M}}}) -> {{{{model}}}} on {{{{device}}}}",
            "bytes",
            "Reserved for each loaded model.",
            width=6,
        ),
    ),
)

_DEVICES = Row(
    "Devices",
    (
        Panel(
            "Memory used",
            (f"device:olympus_device_memory_used:ratio{{{_D}}} -> {{{{device}}}}",),
            "percentunit",
            "By anybody. Of a GPU that is only declared: what leases hold.",
            "bargauge",
            width=6,
            steps=above(0.9, 0.97),
            least=0,
            most=1,
        ),
        lines(
            "Memory over time",
            (
                f"max by (device) (olympus_device_memory_used_bytes{{{_D}}}) -> {{{{device}}}} used",
                f"max by (device) (olympus_device_memory_reserved_bytes{{{_D}}}) -> {{{{device}}}} reserved",
                f"max by (device) (olympus_device_memory_total_bytes{{{_D}}}) -> {{{{device}}}} total",
            ),
            "bytes",
            "Used by anybody, reserved by leases, and all there is. Used far above reserved: other programs.",
            width=9,
        ),
        lines(
            "Work",
            f"max by (device) (olympus_device_utilisation_ratio{{{_D}}}) -> {{{{device}}}}",
            "percentunit",
            "Share of the time in which the GPU computed.",
            width=4,
            most=1,
        ),
        lines(
            "Temperature",
            f"max by (device) (olympus_device_temperature_celsius{{{_D}}}) -> {{{{device}}}}",
            "celsius",
            "Consumer cards slow themselves down between 83 and 93 degrees.",
            width=5,
            steps=above(75, 85),
            has_line_at_steps=True,
        ),
        Panel(
            "Lock of the device",
            (f"max by (device, purpose) (olympus_device_locked{{{_D}}}) -> {{{{device}}}} {{{{purpose}}}}",),
            "short",
            "Who loads, unloads or trains on it: one at a time.",
            "state-timeline",
            width=8,
            steps=((None, "transparent"), (1, "blue")),
        ),
        lines(
            "Waiting for the lock",
            f"max by (device) (olympus_device_lock_waiting{{{_D}}}) -> {{{{device}}}}",
            "short",
            "Processes that want it.",
            width=4,
        ),
        lines(
            "Leases",
            f"sum by (device, holder) (olympus_leases{{{_D}}}) -> {{{{device}}}} {{{{holder}}}}",
            "short",
            "Held on the memory of a device, by who holds them.",
            width=6,
        ),
        lines(
            "What happened to leases",
            "sum by (event) (increase(olympus_lease_events_total[$__rate_interval])) -> {{event}}",
            "short",
            "preempting: asked to make room. refused: there was none.",
            width=6,
        ),
    ),
)

DASHBOARD = Dashboard(
    "olympus-models",
    "Olympus: Models and GPU",
    "What is loaded, how fast it answers, and what devices hold.",
    (_NOW, _ANSWERS, _SWAPS, _DEVICES),
    (
        Variable("model", "Model", "label_values(olympus_model_tokens_total, model)"),
        Variable("device", "Device", "label_values(olympus_device_memory_total_bytes, device)"),
    ),
)
