"""Putting streamed partial replies into the one final reply, for callers who want one."""

from __future__ import annotations

from typing import Any

import msgspec


def gather(final: Any, partials: list[Any]) -> Any:
    """`final` with what only the partial replies said.

    Every field that the final reply leaves empty is filled from the partials: text is joined, lists are chained, of
    anything else the last counts. Where neither is a map, the reply is the joined or chained partials themselves.
    """
    if isinstance(final, msgspec.Struct):
        merged = {}
        for field in final.__struct_fields__:
            values = [getattr(part, field) for part in partials if hasattr(part, field)]
            if values and not getattr(final, field):
                merged[field] = _joined(values)
        return msgspec.structs.replace(final, **merged) if merged else final
    maps = [part for part in partials if isinstance(part, dict)]
    if len(maps) == len(partials) and (final is None or isinstance(final, dict)):
        whole = dict(final or {})
        for field in {field: None for part in maps for field in part}:
            if not whole.get(field):
                whole[field] = _joined([part[field] for part in maps if field in part])
        return whole
    return _joined(partials) if final is None else final


def _joined(values: list[Any]) -> Any:
    if all(isinstance(value, str) for value in values):
        return "".join(values)
    if all(isinstance(value, list) for value in values):
        return [item for value in values for item in value]
    return values[-1]
