"""The routes under /v1 in the OpenAPI page: what must be in a body, and where the rest is told."""

from __future__ import annotations

import re
from typing import Any, Final

_JSON: Final = "application/json"

_TEXT: Final = {"type": "string"}

_ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}

_TEXTS: Final = {"oneOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]}
_MESSAGES: Final = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role"],
        "properties": {"role": {"enum": ["system", "developer", "user", "assistant", "tool"]}},
    },
}

_TIMEOUT: Final = {
    "name": "X-Timeout-S",
    "in": "header",
    "description": "Seconds to wait for the answer.",
    "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 86400},
}

# The field that a body cannot do without.
_REQUIRED: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "/v1/chat/completions": ("messages", _MESSAGES),
    "/v1/completions": ("prompt", _TEXTS),
    "/v1/embeddings": ("input", _TEXTS),
}


def described(method: str, path: str) -> dict[str, Any]:
    """The OpenAPI operation of a route."""
    answer: dict[str, Any] = {_JSON: {"schema": {"type": "object"}}}
    if path.endswith("completions"):
        answer["text/event-stream"] = {"schema": _TEXT}
    operation: dict[str, Any] = {
        "tags": ["openai"],
        "description": "Fields and answers as OpenAI's API reference has them; docs/openai.md says what is not supported.",
        "parameters": [
            *({"name": name, "in": "path", "required": True, "schema": _TEXT} for name in re.findall(r"{(\w+)}", path)),
            _TIMEOUT,
        ],
        "responses": {
            "200": {"description": "The answer.", "content": answer},
            "default": {"description": "The error.", "content": {_JSON: {"schema": _ERROR}}},
        },
        "security": [{"bearer": []}, {}],
    }
    if path in _REQUIRED:
        name, schema = _REQUIRED[path]
        body = {"type": "object", "required": [name], "properties": {"model": _TEXT, name: schema}}
        operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": body}}}
    return operation
