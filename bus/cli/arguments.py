"""The settings a command runs with, from its `--config` and `--set` options."""

from __future__ import annotations

import argparse

from bus.cli.hosting import hosted
from bus.settings import Settings, SettingsError, load_settings, parse_overrides


def settings_from(args: argparse.Namespace) -> Settings:
    """Settings of this invocation: those of the chat where it runs under one. Raises SettingsError."""
    host = hosted()
    if host is not None:
        if args.config or args.set:
            raise SettingsError("--config and --set stand before the chat: olympus --set KEY=VALUE chat")
        return host.settings
    return load_settings(args.config, overrides_from(args))


def overrides_from(args: argparse.Namespace) -> dict[str, str]:
    """The `--set` options by key. Raises SettingsError for one without `=`."""
    return parse_overrides(args.set)


def settings_flags(args: argparse.Namespace) -> list[str]:
    """`--config` and `--set` as they were given, for a child process that reads its settings itself."""
    config = ["--config", args.config] if args.config else []
    return [*config, *(part for pair in args.set for part in ("--set", pair))]
