"""The HTTP edge: every operation of the catalogue that has a route, on one port per service."""
