"""YAML with positions: plain values whose containers remember where each entry was written."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import yaml

from mloc_dagster.spec.base import Json
from mloc_dagster.spec.faults import Fault, shown

MAX_BYTES = 1 << 20
MAX_DEPTH = 40
MAX_NODES = 50_000

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"^[-+]?(0x[0-9a-fA-F]+|0o[0-7]+|[0-9]{1,40})$")
_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,4})?$")
_LINES = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")
_SCALARS = frozenset({"str", "int", "float", "bool", "null", "timestamp", "value", "merge"})
_QUOTED = frozenset({"'", '"', "|", ">"})
KeyPath = tuple[str | int, ...]
_SPECIAL = {".inf": "inf", "+.inf": "inf", "-.inf": "-inf", ".nan": "nan"}


@dataclass(frozen=True)
class Origin:
    """Where an entry stands: its path as written, and (line, column) of its key and of its value, from 1."""

    path: KeyPath
    key: tuple[int, int]
    value: tuple[int, int]

    @property
    def text(self) -> str:
        """The path as people write it: `spec.stages[0].name`."""
        return path_text(self.path)


class WrittenInt(int):
    """A whole number whose spelling matters where text is wanted, such as the revision 0071."""

    text: str


class WrittenFloat(float):
    """A number whose spelling matters where text is wanted, such as the revision 1.10."""

    text: str


class Mapping(dict[str, Json]):
    """A YAML map; `origins` tells where each key was written."""

    def __init__(self) -> None:
        super().__init__()
        self.origins: dict[str, Origin] = {}

    def put(self, key: str, value: Json, origin: Origin) -> None:
        """Set an entry together with its place."""
        self[key] = value
        self.origins[key] = origin

    def take(self, key: str) -> tuple[Json, Origin]:
        """Remove an entry and return it with its place; KeyError when it isn't there."""
        return self.pop(key), self.origins.pop(key)

    def copy(self) -> Mapping:
        """Return a shallow copy that keeps the places."""
        twin = Mapping()
        twin.update(self)
        twin.origins = dict(self.origins)
        return twin


class Sequence(list[Json]):
    """A YAML list; `origins` tells where each item was written."""

    def __init__(self) -> None:
        super().__init__()
        self.origins: list[Origin] = []


def path_text(path: KeyPath) -> str:
    """Return `a.b[0].c` for a path of keys and indexes."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text


def plain(value: Json) -> Json:
    """Return the value with ordinary dicts, lists and numbers."""
    if isinstance(value, (WrittenInt, WrittenFloat)):
        return int(value) if isinstance(value, WrittenInt) else float(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def size(value: Json) -> int:
    """Return how many values a tree holds."""
    if isinstance(value, dict):
        return 1 + sum(size(item) for item in value.values())
    return 1 + sum(size(item) for item in value) if isinstance(value, list) else 1


def merge(base: Mapping, over: Mapping) -> Mapping:
    """Deep-merge two maps: maps merge, scalars and lists of `over` replace."""
    merged = base.copy()
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = merge(old, value)
        merged.put(key, value, over.origins[key])
    return merged


def read(text: str) -> tuple[Json, list[Fault]]:
    """Parse one YAML document with bounds on size, nesting and expansion; only plain data types."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        way_out = "keep data in its own file and name it with data.jsonl or data.url"
        return None, [Fault(1, 1, "", f"the file is larger than {MAX_BYTES >> 10} KiB", str(len(text)), way_out)]
    try:
        too_deep = _bounds(text)
        if too_deep:
            return None, [too_deep]
        root = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        return None, [_syntax(error, text)]
    except (ValueError, RecursionError) as error:
        return None, [Fault(1, 1, "", "the file is not readable YAML", str(error)[:80], "check quotes and indentation")]
    if root is None:
        return None, [Fault(1, 1, "", "the file is empty", "", "write a task file; `mloc init` makes a starter")]
    builder = _Builder()
    return builder.build(root, ()), builder.faults


def _bounds(text: str) -> Fault | None:
    depth = documents = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader), start=1):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.DocumentStartEvent):
            documents += 1
        line, column = _at(event.start_mark)
        if depth > MAX_DEPTH:
            return Fault(line, column, "", f"the file nests deeper than {MAX_DEPTH} levels", "", "flatten it")
        if count > 2 * MAX_NODES:
            return Fault(
                line, column, "", f"the file has more than {MAX_NODES} values", "", "move data to a file of its own"
            )
        if documents > 1:
            return Fault(
                line, column, "", "a second YAML document starts here", "---", "one task file is one document; split it"
            )
    return None


class _Builder:
    """Builds the tree; collects faults instead of raising."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self._count = 0
        self._open: list[int] = []

    def build(self, node: yaml.Node, path: KeyPath) -> Json:
        self._count += 1
        if self._count > MAX_NODES:
            if self._count == MAX_NODES + 1:
                self._fault(node, path, f"aliases expand to more than {MAX_NODES} values", "", "write fewer aliases")
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open or len(self._open) > MAX_DEPTH:
            self._fault(node, path, "an alias holds itself or nests too deep", "", "remove the alias")
            return None
        self._open.append(id(node))
        try:
            return self._collection(node, path)
        finally:
            self._open.pop()

    def _collection(self, node: yaml.Node, path: KeyPath) -> Json:
        if isinstance(node, yaml.MappingNode) and self._allowed(node, path, {"map"}):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and self._allowed(node, path, {"seq"}):
            return self._sequence(node, path)
        return None

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> Mapping:
        result = Mapping()
        merged: list[tuple[yaml.Node, yaml.Node]] = []
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._fault(key_node, path, "a key must be plain text", "", "write the key as one word")
                continue
            key = key_node.value
            if not self._allowed(key_node, (*path, key), _SCALARS):
                continue
            if key == "<<" and key_node.style not in _QUOTED:
                merged.append((key_node, value_node))
                continue
            if key in result:
                first = result.origins[key].key[0]
                self._fault(
                    key_node, (*path, key), "the key is given twice", f"first on line {first}", "keep one of them"
                )
                continue
            origin = Origin((*path, key), _at(key_node.start_mark), _at(value_node.start_mark))
            result.put(key, self.build(value_node, (*path, key)), origin)
        for key_node, value_node in merged:
            self._merge_key(result, key_node, value_node, path)
        return result

    def _merge_key(self, result: Mapping, key: yaml.Node, node: yaml.Node, path: KeyPath) -> None:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                self._fault(
                    key,
                    (*path, "<<"),
                    "a merge key needs a map or a list of maps",
                    "",
                    "point << at an anchor of a map",
                )
                return
            values = self.build(source, path)
            if isinstance(values, Mapping):
                for name, value in values.items():
                    if name not in result:
                        result.put(name, value, values.origins[name])

    def _sequence(self, node: yaml.SequenceNode, path: KeyPath) -> Sequence:
        result = Sequence()
        for index, item in enumerate(node.value):
            place = _at(item.start_mark)
            result.append(self.build(item, (*path, index)))
            result.origins.append(Origin((*path, index), place, place))
        return result

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Json:
        if not self._allowed(node, path, _SCALARS):
            return None
        if "\0" in node.value:
            self._fault(node, path, "text cannot hold the NUL character", "", "remove \\0")
            return None
        value = node.value if node.style in _QUOTED else _plain_scalar(node.value)
        if isinstance(value, float) and not math.isfinite(value):
            self._fault(
                node, path, "is not a finite number", shown(node.value), "write a number, or quote it to mean the text"
            )
            return None
        return value

    def _allowed(self, node: yaml.Node, path: KeyPath, kinds: frozenset[str] | set[str]) -> bool:
        tag = node.tag or ""
        if tag.startswith(_TAG) and tag.removeprefix(_TAG) in kinds:
            return True
        way_out = "remove the tag: a task file holds only plain text, numbers, true/false, lists and maps"
        self._fault(node, path, "this YAML tag is not allowed", tag.replace(_TAG, "!!"), way_out)
        return False

    def _fault(self, node: yaml.Node, path: KeyPath, what: str, value: str, way_out: str) -> None:
        line, column = _at(node.start_mark)
        self.faults.append(Fault(line, column, path_text(path), what, value, way_out))


def _plain_scalar(text: str) -> Json:
    if text in {"", "~", "null", "Null", "NULL"}:
        return None
    if text in {"true", "True", "TRUE", "false", "False", "FALSE"}:
        return text.lower() == "true"
    if _INT.match(text):
        return _as_written(text, int(text, 0) if text.lstrip("+-")[:2] in {"0x", "0o"} else int(text))
    if _FLOAT.match(text):
        return _as_written(text, float(text))
    if text.lower() in _SPECIAL:
        return float(_SPECIAL[text.lower()])
    return text


def _as_written(text: str, number: int | float) -> int | float:
    """Keep the spelling of a number that would be spelled otherwise when it becomes text again."""
    if str(number) == text:
        return number
    written = WrittenInt(number) if isinstance(number, int) else WrittenFloat(number)
    written.text = text
    return written


_SYNTAX_WAYS_OUT = (
    ("mapping values are not allowed", "quote text that holds ': ', and give each key its own line"),
    ("expected ',' or", "close the bracket, and quote a ${...} that stands inside {} or []"),
    ("flow", "close the bracket, and quote a ${...} that stands inside {} or []"),
    ("could not find expected ':'", "write key: value, or close the quote"),
    ("undefined alias", "define it with &name before it is used"),
    ("duplicate anchor", "give each anchor its own name"),
    ("end of stream", "close the quote"),
    ("quoted scalar", "close the quote"),
    ("escape", "write a valid escape, or use single quotes"),
    ("control characters", "remove the control character"),
    ("block", "indent keys of the same map alike"),
)


def _syntax(error: yaml.YAMLError, text: str) -> Fault:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line, column = _at(mark) if mark else (1, 1)
    lines = _LINES.split(text)
    if len(lines) > 1 and not lines[-1]:
        lines.pop()
    if line > len(lines):
        line, column = len(lines), len(lines[-1]) + 1
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)
    way_out = next((way for part, way in _SYNTAX_WAYS_OUT if part in problem), "")
    if "\t" in lines[line - 1][: len(lines[line - 1]) - len(lines[line - 1].lstrip())]:
        way_out = "indent with spaces: this line starts with a tab"
    way_out = way_out or "quote text that starts with one of {}[]&*!|>%@`, and check the indentation"
    context = str(getattr(error, "context", "") or "")
    return Fault(line, column, "", f"not readable as YAML: {problem}{f' {context}' if context else ''}", "", way_out)


def _at(mark: yaml.Mark) -> tuple[int, int]:
    return mark.line + 1, mark.column + 1
