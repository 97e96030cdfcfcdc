"""References `${stage.result.path}` between stages, and `${NAME}` to the environment of the step."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from mloc_dagster.spec.base import Json

_PATTERN = re.compile(r"\$(\$)?\{([^{}]*)\}")
_UNCLOSED = re.compile(r"(?<!\$)\$\{(?![^{}]*\})")
_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
_STEP = re.compile(r"[^.\[\]]+|\[\d+\]")
ALTERNATIVES = frozenset({"path", "task_id", "url"})
"""Keys that are tried in this order, each being allowed to be absent."""


class BadReference(ValueError):
    """A reference that is malformed or finds nothing; the message says which and why."""


@dataclass(frozen=True)
class Reference:
    """One `${...}`: a stage with a path into its envelope, or (without a path) an environment name."""

    text: str
    head: str
    path: tuple[str | int, ...]

    @property
    def is_environment(self) -> bool:
        """Whether it names an environment variable or secret instead of a stage."""
        return not self.path


def parse(body: str) -> Reference:
    """Parse what stands between `${` and `}`; raises BadReference when it is no reference."""
    text = body.strip()
    if _NAME.match(text):
        return Reference(text, text, ())
    head, dot, rest = text.partition(".")
    if not dot or not head or not rest or rest.endswith(".") or ".." in rest or rest.startswith("."):
        raise BadReference(
            f"${{{body:.60}}} is not a reference; "
            "write ${stage.result.path.to[0].field}, ${NAME}, or $${ for a literal"
        )
    steps = _STEP.findall(rest)
    if len("".join(steps)) != len(rest.replace(".", "")):
        raise BadReference(f"${{{body:.60}}} has an unreadable path; list indexes are [0] or .0")
    return Reference(text, head, tuple(_step(step) for step in steps))


def head(body: str) -> str | None:
    """The stage that a reference names; None for one that names the environment or cannot be read."""
    try:
        reference = parse(body)
    except BadReference:
        return None
    return None if reference.is_environment else reference.head


def find(value: Json) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield (path into value, body) of every reference in a tree of dicts, lists and strings."""
    if isinstance(value, str):
        for match in _PATTERN.finditer(value):
            if not match[1]:
                yield (), match[2]
    elif isinstance(value, dict):
        for key, item in value.items():
            for path, body in find(item):
                yield (key, *path), body
    elif isinstance(value, list):
        for index, item in enumerate(value):
            for path, body in find(item):
                yield (index, *path), body


def unclosed(value: Json) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every string in which a `${` is never closed."""
    if isinstance(value, str):
        if _UNCLOSED.search(value):
            yield ()
    elif isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            for path in unclosed(item):
                yield (key, *path)


def whole(value: Json) -> str | None:
    """Return the body when the value is one whole reference, else None."""
    match = _PATTERN.fullmatch(value.strip()) if isinstance(value, str) else None
    return match[2] if match and not match[1] else None


def has_reference(value: Json) -> bool:
    """Whether a string holds a live reference."""
    return isinstance(value, str) and any(not match[1] for match in _PATTERN.finditer(value))


def resolve(value: Json, envelopes: Callable[[str], Mapping[str, Json]], environment: Mapping[str, str]) -> Json:
    """Return `value` with every reference replaced.

    `envelopes(stage)` gives a stage's envelope and raises BadReference when there is none. A string that is one
    whole reference takes the type of what it names; an embedded one becomes text (JSON for maps and lists).
    An absent one of several alternatives (`path`, `task_id`, `url`) is dropped while another works.
    """
    if isinstance(value, str):
        return _resolve_text(value, envelopes, environment)
    if isinstance(value, list):
        return [resolve(item, envelopes, environment) for item in value]
    if isinstance(value, dict):
        return _resolve_mapping(value, envelopes, environment)
    return value


def _resolve_mapping(
    value: dict[str, Json], envelopes: Callable[[str], Mapping[str, Json]], environment: Mapping[str, str]
) -> dict[str, Json]:
    given = [key for key in ("path", "task_id", "url") if value.get(key) is not None]
    lazy = len(given) > 1
    resolved: dict[str, Json] = {}
    failures: list[str] = []
    for key, item in value.items():
        try:
            resolved[key] = resolve(item, envelopes, environment)
        except BadReference as error:
            if not (lazy and key in ALTERNATIVES):
                raise
            failures.append(f"{key}: {error}")
    if failures and not any(key in resolved for key in given):
        raise BadReference("none of path, taskId, url can be used: " + "; ".join(failures))
    return resolved


def _resolve_text(text: str, envelopes: Callable[[str], Mapping[str, Json]], environment: Mapping[str, str]) -> Json:
    whole = _PATTERN.fullmatch(text)
    if whole and not whole[1]:
        return lookup(parse(whole[2]), envelopes, environment)

    def replace(match: re.Match[str]) -> str:
        if match[1]:
            return "${" + match[2] + "}"
        return as_text(lookup(parse(match[2]), envelopes, environment))

    return _PATTERN.sub(replace, text).replace("$${", "${") if "${" in text else text


def as_text(value: Json) -> str:
    """Text of a value inside a longer string: strings as they are, everything else as JSON."""
    import json

    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def lookup(
    reference: Reference, envelopes: Callable[[str], Mapping[str, Json]], environment: Mapping[str, str]
) -> Json:
    """Return the value that a reference names; raises BadReference when there is none."""
    if reference.is_environment:
        if reference.head not in environment:
            raise BadReference(
                f"${{{reference.head}}} is not set where this step runs; export {reference.head} there and run again"
            )
        return environment[reference.head]
    value: Json = envelopes(reference.head)
    walked = reference.head
    for step in reference.path:
        value = _descend(value, step, walked, reference)
        walked += f"[{step}]" if isinstance(step, int) else f".{step}"
    return value


def _descend(value: Json, step: str | int, walked: str, reference: Reference) -> Json:
    if isinstance(value, Mapping):
        if str(step) in value:
            return value[str(step)]
        raise BadReference(
            f"${{{reference.text}}}: {walked} has no key {str(step)!r}; it has {', '.join(map(str, value)) or 'none'}"
        )
    if isinstance(value, list):
        index = int(step) if str(step).isdigit() else None
        if index is not None and index < len(value):
            return value[index]
        raise BadReference(f"${{{reference.text}}}: {walked} is a list of {len(value)}; {step!r} is not in it")
    raise BadReference(f"${{{reference.text}}}: {walked} is {value!r:.60}, it has nothing called {step!r}")


def _step(text: str) -> str | int:
    return int(text[1:-1]) if text.startswith("[") else text
