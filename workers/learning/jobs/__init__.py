"""Jobs: when an adapter is trained, and everything that happens on the way from a dataset to a promoted adapter."""
