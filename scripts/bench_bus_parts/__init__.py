"""Parts of scripts/bench_bus.py: the peers' processes, the cases measured on them, and the table."""
