"""The resource service: devices, their memory, and leases on it (docs/resources.md)."""
