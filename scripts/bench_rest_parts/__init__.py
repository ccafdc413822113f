"""Parts of bench_rest: the service that Olympus is compared with, and the callers."""
