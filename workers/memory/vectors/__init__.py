"""Vectors of chunks: the encoder in a process of its own, the index, and the pump between them. Start at vectors.py."""
