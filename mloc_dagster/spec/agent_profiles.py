"""Agent profiles: YAML files that are shipped, or that lie in `agents/` beside a task file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path

from mloc_dagster.spec import references as refs
from mloc_dagster.spec.agent import Profile
from mloc_dagster.spec.canonical import canonicalise, drop_nulls
from mloc_dagster.spec.faults import Fault, SpecError, nearest, shown
from mloc_dagster.spec.tree import Mapping, Origin, read
from mloc_dagster.spec.typed import origin_at, validate

NAME = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
_FOLDER = "agents"


def shipped() -> dict[str, Path]:
    """Return the shipped profiles by name, such as `examples/search_agent`."""
    folder = Path(str(files("executors").joinpath("agent", "profiles")))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def in_workspace(name: str, base: Path) -> Path | None:
    """Return the profile file of the folder `agents` beside a task file, or None."""
    path = base / _FOLDER / f"{name}.yaml"
    try:
        return path if NAME.fullmatch(name) and path.is_file() else None
    except OSError:  # longer than a file's name can be
        return None


def find(config_name: str) -> Path | None:
    """Return the file of a profile: an absolute path (of a workspace file), or a shipped name."""
    if Path(config_name).is_absolute():
        return Path(config_name)
    return shipped().get(config_name)


def closest(name: str) -> str:
    """Return the way out for a name that is no profile."""
    names = sorted(shipped())
    guess = nearest(name, names) or nearest(name.rpartition("/")[2], [one.rpartition("/")[2] for one in names])
    full = next((one for one in names if guess and one.rpartition("/")[2] == guess.rpartition("/")[2]), None)
    return f"did you mean {full}?" if full else f"write one of {', '.join(names)}, or add {_FOLDER}/{name}.yaml"


def load_profile(path: Path) -> Profile:
    """Read a profile file; raises SpecError with every fault and its place."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError([Fault(0, 0, "", "the profile cannot be read", str(error)[:80], "", str(path))]) from None
    return _profile(text, str(path))


@cache
def _profile(text: str, file: str) -> Profile:
    tree, faults = read(text)
    if not isinstance(tree, Mapping):
        what = "a profile must be a map"
        faults = faults or [Fault(1, 1, "", what, shown(tree), "start with instructions: or tools:")]
        raise SpecError([fault.in_file(file) for fault in faults])
    canonical = drop_nulls(canonicalise(tree, Profile, faults), Profile)
    profile, _, wrong = validate(canonical, Profile, Origin((), (1, 1), (1, 1)))
    faults = [*faults, *wrong, *_references(canonical)]
    if faults or profile is None:
        raise SpecError([fault.in_file(file) for fault in faults])
    return profile


def _references(tree: Mapping) -> Iterator[Fault]:
    for path, body in refs.find(tree):
        place = origin_at(tree, path)
        if place:
            way_out = "write this key in the task file, under agent"
            yield Fault(*place.value, place.text, "a profile cannot hold a reference", f"${{{body:.80}}}", way_out)
