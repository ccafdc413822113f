"""Parts of `scripts/bench_models.py`."""
