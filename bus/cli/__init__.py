"""The `olympus` command: one module per subcommand, found by name in `bus.cli.app`."""
