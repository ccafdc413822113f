"""The exporter: one page for Prometheus with the figures of every process."""
