"""Parts of scripts/bench_prediction.py: the traces, the service's own scheduler replayed on them, and other policies."""
