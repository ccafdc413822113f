"""What every process uses to speak: client, worker runtime, transport, settings, and the `olympus` command."""
