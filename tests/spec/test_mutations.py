"""Thousands of damaged task files: each loads or tells its faults, at places inside the file, in good time."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from copy import deepcopy
from functools import reduce
from operator import getitem

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mloc_dagster.spec import SpecError, TaskFile, load_file, load_text
from mloc_dagster.spec.base import Json
from tests.spec.corpus import GOOD, SHIPPED

TEXTS = [file.read_text("utf-8") for file in (*GOOD, *SHIPPED)]
KEYS = sorted({key for text in TEXTS for key in re.findall(r"(\w+):", text)})
MOST_SECONDS = 2.0
PER_KIND = 130
LINES = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")
SCALARS = [
    "", "~", "null", "true", "-1", "0", "1e999", ".nan", "-.inf", "9" * 5000, "0x" + "f" * 50, "1e-400", "[]", "{}",
    "[[[]]]", "{a: {b: [1]}}", "'quoted'", '"\\0"', '"\\ud800"', '"\\x07"', "☃ 钥匙 🦙", "\u202e", "\x85", "2024-01-01",
    "!!int 5", "!!python/object/apply:os.system [id]", "!!set {a}", "!!binary aGk=", "!custom x", "*nowhere", "&a [*a]",
    "|", "> folded", "? x", "${", "${}", "${a.b.c}", "${a[0]}", "$${a}", "${stage.result.items[0].output}", "${HOME}",
    "${a} ${b.result}", "64Qi", "1e400Gi", "train[", "train[:200%]", "../..", "/\\0", "x" * 20_000, "- - - a", "<<",
    "@", "`", "%", "a: b: c", "[1, 2", "{a: 1", "'", "\t", "inference", "[sft, echo]", "hugginface", "1_0", "yes",
]  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(
        [None, True, False, 0, -1, 10**40, -1e308, 0.5, "", "x", "any", "${a.b.c}", "${X}", [], {}, [[]], [{}]]
    ),
    st.sampled_from(SCALARS[:-20]),
    st.recursive(st.integers() | st.text(max_size=4), lambda inner: st.lists(inner, max_size=3)),
    st.dictionaries(st.sampled_from(KEYS), st.integers() | st.text(max_size=4) | st.none(), max_size=3),
)
LAUGHS = "l0: &l0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 9)
)
TAILS = [
    LAUGHS,
    "spec: 1\n",
    "---\na: 1\n",
    "...\n",
    "? [a, b]\n: c\n",
    "<<: [1]\n",
    "a: " + "[" * 200,
    "{" * 60,
    "\t",
    "\0",
]


def _at_line(change: Callable[[str, st.DataObject], list[str]]) -> Callable[[str, st.DataObject], str]:
    def changed(text: str, data: st.DataObject) -> str:
        lines = text.split("\n")
        index = data.draw(st.integers(0, len(lines) - 1))
        lines[index : index + 1] = change(lines[index], data)
        return "\n".join(lines)

    return changed


def _scalar(line: str, data: st.DataObject) -> list[str]:
    spots = [match.span(1) for match in re.finditer(r"(?::|-|,|\[)\s+([^,{}\[\]\s][^,{}\[\]]*)", line)]
    start, end = data.draw(st.sampled_from(spots)) if spots else (len(line), len(line))
    new = data.draw(st.sampled_from(SCALARS))
    return [line[:start] + new + line[end:]]


def _key(line: str, data: st.DataObject) -> list[str]:
    keys = [match.span(1) for match in re.finditer(r"(\w+):", line)]
    if not keys:
        return [line]
    start, end = data.draw(st.sampled_from(keys))
    other = data.draw(
        st.one_of(st.sampled_from(KEYS), st.just("<<"), st.just(line[start:end][:-1]), st.text(max_size=5))
    )
    return [line[:start] + other + line[end:]]


def _indented(line: str, data: st.DataObject) -> list[str]:
    return [
        data.draw(st.sampled_from(["", " ", "  ", "    ", "\t", "- "]))
        + data.draw(st.sampled_from([line, line.lstrip()]))
    ]


def _swapped(text: str, data: st.DataObject) -> str:
    lines = text.split("\n")
    first, second = (data.draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    lines[first], lines[second] = lines[second], lines[first]
    return "\n".join(lines)


def _spliced(text: str, data: st.DataObject) -> str:
    at = data.draw(st.integers(0, len(text)))
    noise = st.one_of(st.text(max_size=8), st.binary(max_size=8).map(lambda raw: raw.decode("latin-1")))
    return text[:at] + data.draw(noise) + text[at + data.draw(st.integers(0, 5)) :]


def _paths(tree: Json, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [found for key, item in entries for found in ((*path, key), *_paths(item, (*path, key)))]


def _grafted(text: str, data: st.DataObject) -> str:
    """Replace, remove, rename or double entries of the parsed file, so that the text stays readable YAML."""
    if re.search(r"\*l\d", text):
        return text
    try:
        tree = json.loads(json.dumps(yaml.safe_load(text), default=str))
    except (yaml.YAMLError, ValueError, TypeError):
        return text
    for _ in range(data.draw(st.integers(1, 3))):
        paths = _paths(tree)
        if not paths:
            break
        *parents, last = data.draw(st.sampled_from(paths))
        holder = reduce(getitem, parents, tree)
        match data.draw(st.sampled_from(["value", "value", "remove", "rename", "double", "wrap"])):
            case "value":
                holder[last] = deepcopy(data.draw(VALUES))  # a later change may be one inside of it
            case "remove":
                del holder[last]
            case "rename" if isinstance(holder, dict):
                holder[data.draw(st.sampled_from([*KEYS, "", "a.b", "<<", "☃"]))] = holder.pop(last)
            case "double" if isinstance(holder, list):
                holder.append(deepcopy(holder[int(last)]))
            case _:
                holder[last] = data.draw(
                    st.sampled_from([[holder[last]], {str(last): holder[last]}, str(holder[last])])
                )
    return yaml.safe_dump(tree, allow_unicode=True, default_flow_style=data.draw(st.sampled_from([None, True, False])))


CHANGES: dict[str, Callable[[str, st.DataObject], str]] = {
    "delete a line": _at_line(lambda line, data: []),
    "double a line": _at_line(lambda line, data: [line, line]),
    "indent": _at_line(_indented),
    "replace a value": _at_line(_scalar),
    "rename a key": _at_line(_key),
    "anchor": _at_line(lambda line, data: [re.sub(r": (?=\S)", ": &here ", line, count=1), "    again: *here"]),
    "swap lines": _swapped,
    "cut off": lambda text, data: text[: data.draw(st.integers(0, len(text)))],
    "splice noise": _spliced,
    "append": lambda text, data: text + data.draw(st.sampled_from(TAILS)),
    "graft": _grafted,
    "join two files": lambda text, data: text + data.draw(st.sampled_from(TEXTS)),
}


CHANGES["several of these"] = lambda text, data: CHANGES[data.draw(st.sampled_from(list(CHANGES)[:-1]))](text, data)


def check(load: Callable[[], TaskFile], text: str) -> None:
    """Load; whatever comes out, it is a task or faults with places inside the text, soon."""
    started = time.process_time()
    try:
        task = load()
        assert isinstance(task, TaskFile) and task.stages
        told = task.warnings
    except SpecError as error:
        told = error.faults
        assert told
    assert time.process_time() - started < MOST_SECONDS
    last = len(LINES.split(text))
    for fault in told:
        assert 1 <= fault.line <= last, fault
        assert fault.column >= 1 and fault.what, fault


def examples(count: int) -> settings:
    """The same examples in every run, kept nowhere, with no limit but ours."""
    health = list(HealthCheck)
    return settings(max_examples=count, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
                    suppress_health_check=health)  # fmt: skip


@pytest.mark.parametrize("kind", CHANGES)
@examples(PER_KIND)
@given(data=st.data())
def test_damaged_files(kind: str, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(TEXTS))
    for _ in range(data.draw(st.integers(1, 3))):
        text = CHANGES[kind](text, data)
    check(lambda: load_text(text), text)


@examples(1000)
@given(data=st.data())
def test_grafted_files(data: st.DataObject) -> None:
    text = _grafted(data.draw(st.sampled_from(TEXTS)), data)
    check(lambda: load_text(text), text)


@examples(150)
@given(data=st.data())
def test_bytes_on_disk(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    raw = bytearray(data.draw(st.sampled_from(TEXTS)).encode())
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / "damaged.yaml"
    file.write_bytes(raw)
    check(lambda: load_file(file), raw.decode("utf-8", "replace"))


def test_the_number_of_damaged_files() -> None:
    assert len(CHANGES) * PER_KIND + 1150 >= 2000


BIG = {
    "many stages": "taskType: echo\nstages:\n" + "".join(f"- {{name: s{n}}}\n" for n in range(499)),
    "large base": f"taskType: echo\necho: {list(range(40_000))}\nstages: [{{name: a}}, {{name: b}}, {{name: c}}]\n",
    "many unknown keys": "taskType: echo\n" + "".join(f"key_of_no_one_{n}: 1\n" for n in range(12_000)),
    "many wrong items": f"taskType: echo\nlora: {{target_modules: {[[1]] * 8_000}}}\n",
    "many references": "taskType: echo\necho: [" + "'${a.b.c.d}'," * 10_000 + "]\n",
    "one long string": "taskType: echo\necho: '" + "${" * 300_000 + "'\n",
    "long circle": "taskType: echo\nstages:\n- {name: s0, dependsOn: [s399]}\n"
    + "".join(f"- {{name: s{n}}}\n" for n in range(1, 400)),
    "long key": "taskType: echo\n? " + "k" * 200_000 + "\n: 1\n",
    "deferred": "taskType: echo\nrag: {documents: {source: [" + "{glob: '${a.b}', type: [1]}," * 5_000 + "]}}\n",
}


@pytest.mark.parametrize("name", BIG)
def test_large_files_take_no_time(name: str) -> None:
    check(lambda: load_text(BIG[name]), BIG[name])
