"""Parts of bench_recall.py: the data, the searches it compares with, the memory itself, and the table."""
