"""MemoryHub: what is written here is on disk before it is acknowledged. Start reading at store.py."""
