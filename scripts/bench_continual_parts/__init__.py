"""Parts of bench_continual.py."""
