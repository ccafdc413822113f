"""The files of models: hashes, versions, aliases, bringing in, deleting, and the catalogue's copy in MemoryHub."""
