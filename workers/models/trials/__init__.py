"""Trials of models: side by side, evaluation suites, benchmarks, A/B tests, and the measurements others send."""
