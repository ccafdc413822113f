"""Parts of `scripts/chaos.py`: a house of its own, its Prometheus, and the faults."""
