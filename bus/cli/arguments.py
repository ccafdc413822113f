"""The settings a command runs with, from its `--config` and `--set` options."""

from __future__ import annotations

import argparse

from bus.settings import Settings, load_settings, parse_overrides


def settings_from(args: argparse.Namespace) -> Settings:
    """Settings of this invocation. Raises SettingsError."""
    return load_settings(args.config, overrides_from(args))


def overrides_from(args: argparse.Namespace) -> dict[str, str]:
    """The `--set` options by key. Raises SettingsError for one without `=`."""
    return parse_overrides(args.set)


def settings_flags(args: argparse.Namespace) -> list[str]:
    """`--config` and `--set` as they were given, for a child process that reads its settings itself."""
    config = ["--config", args.config] if args.config else []
    return [*config, *(part for pair in args.set for part in ("--set", pair))]
