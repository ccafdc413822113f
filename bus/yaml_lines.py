"""YAML text as plain values that know their lines, read safely; it knows nothing of what the keys mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    import yaml

# Values that one document may stand for, aliases counted each time: nine lines of aliases could stand for 10^9.
_VALUES_MAX: Final = 20_000

_TAG: Final = "tag:yaml.org,2002:"


class YamlError(ValueError):
    """Text that is no YAML, or holds what is no plain value. `line` counts from 1; `name` is the dotted key, or ""."""

    def __init__(self, line: int, why: str, name: str = "") -> None:
        super().__init__(f"line {line}: {name + ' ' if name else ''}{why}")
        self.line = line
        self.why = why
        self.name = name


class Node(NamedTuple):
    """A value and the line it is written on, of an entry the line of its key; lines count from 1.

    value: a text, number, boolean or None; a list of nodes; or a mapping of nodes. Dates are texts. starts: the line that
    the value itself begins on; the text of a block (style `|` or `>`) begins on the next one.
    written: of a text, number, boolean or None what stands there: `no` where the value is False.
    """

    value: Any
    line: int
    starts: int
    style: str = ""
    written: str = ""

    def plain(self) -> Any:
        """The value without its lines."""
        if isinstance(self.value, list):
            return [one.plain() for one in self.value]
        if isinstance(self.value, dict):
            return {key: one.plain() for key, one in self.value.items()}
        return self.value


def parse(text: str) -> Node:
    """The tree of one document; that of an empty text holds None. Raises YamlError, also for a key that stands twice."""
    import yaml
    from yaml.reader import ReaderError

    try:
        loader = yaml.SafeLoader(text)
    except ReaderError as error:
        raise YamlError(text.count("\n", 0, error.position) + 1, "it holds a control character") from error
    try:
        tree = loader.get_single_node()
        return Node(None, 1, 1) if tree is None else _Reading(loader).node(tree, tree.start_mark.line + 1, "")
    except yaml.YAMLError as error:
        # Not its own words, which show the line: a secret may stand in it.
        mark = getattr(error, "problem_mark", None) or loader.get_mark()
        why = getattr(error, "problem", None) or "wrong character"
        raise YamlError(mark.line + 1, f"not valid YAML: {why}") from error
    except RecursionError as error:
        raise YamlError(loader.get_mark().line + 1, "it is nested too deeply") from error
    # What the scanner raises for "\\UFFFFFFFF" and "\\U00110000".
    except (OverflowError, ValueError) as error:
        if isinstance(error, YamlError):
            raise
        raise YamlError(loader.get_mark().line + 1, "not valid YAML: it names a character that there is not") from error
    finally:
        loader.dispose()


class _Reading:
    """One pass over the nodes of a document."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self._loader = loader
        self._values = 0
        self._open: set[int] = set()

    def node(self, node: yaml.Node, line: int, name: str) -> Node:
        """`node` as plain values; `line` is that of its key."""
        self._values += 1
        if self._values > _VALUES_MAX:
            raise YamlError(line, f"stands for more than {_VALUES_MAX:,} values", name)
        if id(node) in self._open:
            raise YamlError(line, "holds itself", name)
        self._open.add(id(node))
        value = self._value(node, line, name)
        self._open.discard(id(node))
        style = getattr(node, "style", None) or ""
        written = _whole(node.value, line, name) if isinstance(node.value, str) else ""
        return Node(value, line, node.start_mark.line + 1, style, written)

    def _value(self, node: yaml.Node, line: int, name: str) -> Any:
        import yaml

        kind = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self.node(one, one.start_mark.line + 1, name) for one in node.value]
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node, name)
        if isinstance(node, yaml.ScalarNode) and kind in ("str", "timestamp"):
            return node.value
        if isinstance(node, yaml.ScalarNode) and kind in ("int", "float", "bool", "null"):
            return self._scalar(node, line, name)
        raise YamlError(line, f"is not a plain value: it is tagged {kind[:40]!r}", name)

    def _mapping(self, node: yaml.MappingNode, name: str) -> dict[str, Node]:
        import yaml

        entries: dict[str, Node] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise YamlError(line, "has a key that is no plain text", name)
            key_text = _whole(key.value, line, name)
            inner = f"{name}.{key_text}" if name else key_text
            if key_text in entries:
                raise YamlError(line, f"is already set at line {entries[key_text].line}", inner)
            entries[key_text] = self.node(value, line, inner)
        return entries

    def _scalar(self, node: yaml.Node, line: int, name: str) -> Any:
        try:
            return self._loader.construct_object(node)
        # What the parsers of numbers and booleans raise for `!!int x`, `!!bool x` and numbers of thousands of digits.
        except (ValueError, KeyError, IndexError, OverflowError) as error:
            raise YamlError(
                line, f"is not a plain value: it cannot be read as {node.tag.removeprefix(_TAG)}", name
            ) from error


def _whole(text: str, line: int, name: str) -> str:
    """`text`, unless it holds half of a pair such as "\\ud800", which nothing can send or write."""
    if text.isascii() or text.isprintable() or not any("\ud800" <= one <= "\udfff" for one in text):
        return text
    raise YamlError(line, "holds half a character, a surrogate without its other half", name)
