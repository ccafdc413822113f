"""`training_data/training_data_*.json` of the older monitor: what it would have trained on becomes examples.

No document tells their shape, so every pair of a question and an answer is taken under the names in use. They belong to
no opportunity: they are trained on once somebody builds a dataset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from bus.sync import SyncClient
from migrate_parts.figures import text
from migrate_parts.moving import Asked, Becomes, Row, Store, row
from migrate_parts.stores import Found, UnusableStore, read_json
from schemas.bodies.learning import Example
from schemas.bodies.learning_data import DatasetImport, RowList, RowPage
from schemas.bodies.model import ChatMessage

_PATTERN: Final = "training_data_*.json"
_FOLDERS: Final = ("training_data", "data/training_data", "main_pc_code/training_data", "pc2_code/training_data")

# Names of a list in a file that holds more than a list, of a question, of what should be answered, and of what was.
_LISTS: Final = ("candidates", "training_data", "data", "examples", "interactions", "samples")
_QUESTIONS: Final = ("user_input", "prompt", "instruction", "question", "input")
_RIGHT: Final = ("correction", "corrected_response", "expected_output", "preferred")
_ANSWERS: Final = ("assistant_response", "response", "completion", "output", "answer")

_PAGE: Final = 1_000


def stores(root: Path) -> list[Store]:
    """The files that the project has, the oldest first, as their names sort."""
    if root.is_file():
        found = [Found(root.name, root)] if root.match(_PATTERN) else []
    else:
        files = {path.resolve(): path for folder in _FOLDERS for path in sorted((root / folder).glob(_PATTERN))}
        found = [Found(str(path.relative_to(root)), path) for path in files.values() if path.is_file()]
    taken = _Taken()
    return [_store(one, taken) for one in found]


def _store(found: Found, taken: _Taken) -> Store:
    def rows() -> Iterator[Row]:
        for at, one in enumerate(_listed(found.path), 1):
            yield row("candidates", at, partial(_example, one, found.name, taken))

    return Store(found.name, found.path, lambda: len(_listed(found.path)), rows)


def _listed(path: Path) -> list[Any]:
    """Raises UnusableStore."""
    value = read_json(path)
    if isinstance(value, dict):
        value = next((value[name] for name in _LISTS if isinstance(value.get(name), list)), [value])
    if not isinstance(value, list):
        raise UnusableStore(f"{path}: holds {type(value).__name__} where a list is expected")
    return value


def _example(one: Any, source: str, taken: _Taken) -> Becomes:
    if not isinstance(one, dict):
        return f"holds {type(one).__name__} where an object is expected"
    # Some wrapped what was heard.
    inner: dict[str, Any] = next((one[name] for name in ("interaction", "data") if isinstance(one.get(name), dict)), {})
    fields = {**one, **inner}
    question, right, said = (_first(fields, names) for names in (_QUESTIONS, _RIGHT, _ANSWERS))
    answer = right or said
    if not question or not answer:
        return "has no question with an answer"
    example = Example(
        messages=[ChatMessage(role="user", content=question)],
        answer=answer,
        rejected=said if right and said and said != right else None,
    )
    body = DatasetImport(examples=[example], source=source)
    return Asked("learning.dataset.import", body, check=partial(taken.difference, answer))


def _first(fields: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return next((text(fields[name]).strip() for name in names if isinstance(fields.get(name), str)), "")


class _Taken:
    """Answers of the examples that are there, read once: an example has no name of the old store."""

    def __init__(self) -> None:
        self._answers: set[str] | None = None

    def difference(self, answer: str, client: SyncClient) -> str | None:
        """None where an example with this answer was taken in."""
        if self._answers is None:
            self._answers = set(_answers(client))
        if answer in self._answers:
            return None
        return "no example has this answer; it was refused, holds a secret, or was removed"


def _answers(client: SyncClient) -> Iterator[str]:
    after = ""
    while True:
        page: RowPage = client.request("learning.row.list", RowList(limit=_PAGE, after=after))
        yield from (one.answer.strip() for one in page.rows)
        if not page.next:
            return
        after = page.next
