"""Backends: what runs a model inside a runner process."""
