"""Writes values as YAML the way a person would, so that the file can be read and changed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any


def dump(entries: Mapping[str, Any], width: int) -> str:
    """Lines of `key: value` in the order given, about `width` columns wide; texts of several lines as blocks."""
    import yaml

    return yaml.dump(dict(entries), Dumper=_dumper(), allow_unicode=True, sort_keys=False, width=width)


@cache
def _dumper() -> type:
    import yaml

    class Blocks(yaml.SafeDumper):
        pass

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Blocks.add_representer(str, text)
    return Blocks
