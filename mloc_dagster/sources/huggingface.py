"""Models and data sets of a hub that speaks the Hugging Face API.

Its address is HF_ENDPOINT, the token HF_TOKEN; the token is read from the environment only, and never stored.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from mloc_dagster.sources import http
from mloc_dagster.sources.pulled import Progress, PullError, tree_size
from mloc_dagster.store.digests import file_digest

_Info = TypeVar("_Info")
Kind = Literal["model", "dataset"]

_MODEL = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py", "tokenizer*")
_OLDER_WEIGHTS = ("*.bin",)
_OTHER_FORMS = ("onnx/*", "openvino/*", "original/*", "consolidated*", "*.fp16.safetensors", "*.fp16.bin")
"""Copies of the same weights that neither transformers nor vLLM load by default."""

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")
_ROUNDS = 2
_PAUSES_SECONDS = (0.5, 2.0)
_OFFLINE = "check the network, or set mirror: (MLOC_MIRROR) to a folder with {kind}s/<org>/<name>"


@dataclass(frozen=True)
class _Wanted:
    """A commit and its files that are needed: their sizes in bytes, and SHA-256 (hex) where the hub knows it."""

    commit: str
    patterns: tuple[str, ...]
    sizes: Mapping[str, int]
    digests: Mapping[str, str]


def check_id(name: str) -> None:
    """Raise PullError for what cannot be the id of a repository on a hub."""
    if not _ID.fullmatch(name) or ".." in name:
        raise PullError(f"{name!r} is no hub id; write <org>/<name>, or another model.source.type")


def endpoint() -> str:
    """Return the hub's address, empty for the public one."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/")


def fill(repo: str, revision: str | None, kind: Kind, folder: Path, progress: Progress | None) -> str:
    """Download the files of a repository that are needed into a folder and return the commit.

    What an interrupted download left is continued. Sizes, and digests of large files, are compared with the hub's.
    Raises PullError.
    """
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    what = f"{kind} {repo}"
    try:
        return _pull(repo, revision, kind, folder, progress)
    except PullError:
        raise
    except GatedRepoError:
        raise PullError(f"{what} is gated; accept its terms on the hub and export HF_TOKEN") from None
    except RevisionNotFoundError:
        raise PullError(f"{what} has no revision {revision!r}; check the revision") from None
    except RepositoryNotFoundError:
        raise PullError(f"{what} is not on the hub, or is private; check the name, or export HF_TOKEN") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = "export a valid HF_TOKEN" if status in (401, 403) else "try again later"
        raise PullError(f"{what}: the hub answered {status}; {hint}") from None
    except Exception as error:  # the hub's HTTP library raises its own kinds when the network is down
        if isinstance(error, OSError) and error.errno in _DISK:
            raise
        reason = f"{type(error).__name__}: {error}".split("\n")[0][:200]
        raise PullError(f"{what}: the hub cannot be reached ({reason}); {_OFFLINE.format(kind=kind)}") from None


_DISK = (13, 28, 30, 122)
"""Denied, full, read-only, over quota: faults of our own disk."""


def _pull(repo: str, revision: str | None, kind: Kind, folder: Path, progress: Progress | None) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    wanted = _wanted(repo, revision, kind)
    damaged: list[str] = []
    for _ in range(_ROUNDS):
        with _watched(folder, sum(wanted.sizes.values()), progress):
            _continue_files(repo, kind, wanted, folder)
            snapshot_download(
                repo, repo_type=kind, revision=wanted.commit, local_dir=folder, allow_patterns=list(wanted.patterns),
                ignore_patterns=list(_skipped(kind)), endpoint=endpoint() or None, token=_token(),
            )  # fmt: skip
        damaged = _damaged(wanted, folder)
        if not damaged:
            _keep_only(wanted, folder)
            return wanted.commit
    raise PullError(f"{kind} {repo}: {', '.join(damaged)} came damaged twice; try again, or use another hub or mirror")


def _wanted(repo: str, revision: str | None, kind: Kind) -> _Wanted:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint() or None, token=_token())
    look = api.model_info if kind == "model" else api.dataset_info
    info = _patiently(lambda: look(repo, revision=revision, files_metadata=True))
    siblings = {file.rfilename: file for file in info.siblings or ()}
    patterns = _patterns(kind, list(siblings))
    names = [name for name in siblings if _matches(name, patterns) and not _matches(name, _skipped(kind))]
    if not names or info.sha is None:
        raise PullError(f"{kind} {repo} has no files to pull: {', '.join(sorted(siblings)[:8]) or 'it is empty'}")
    digests = {name: str(lfs["sha256"]) for name in names if (lfs := siblings[name].lfs)}
    return _Wanted(info.sha, patterns, {name: siblings[name].size or 0 for name in names}, digests)


def _patiently(look: Callable[[], _Info]) -> _Info:
    """Ask again when the hub is busy; the library does that for files only."""
    from huggingface_hub.errors import HfHubHTTPError

    for pause in _PAUSES_SECONDS:
        try:
            return look()
        except HfHubHTTPError as error:
            if error.response.status_code != 429 and error.response.status_code < 500:
                raise
            time.sleep(pause)
    return look()


def _continue_files(repo: str, kind: Kind, wanted: _Wanted, folder: Path) -> None:
    """Go on with the large files that a killed pull left; huggingface_hub would start them anew.

    Its own name for such a file holds the SHA-256 of the content.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    for name, digest in wanted.digests.items():
        left = [path for path in folder.rglob(f"*{digest}*.incomplete") if not _has_holes(path)]
        if not left or (folder / name).exists():
            continue
        part = max(left, key=lambda path: path.stat().st_size)
        part.with_name(f"{part.name}.stamp").write_text("", "utf-8")
        url = hf_hub_url(repo, name, repo_type=kind, revision=wanted.commit, endpoint=endpoint() or None)
        http.download(url, part, headers=build_hf_headers(token=_token()))
        part.rename(folder / name)


def _has_holes(path: Path) -> bool:
    """Whether bytes are missing before the end, as when several connections wrote to the file."""
    return path.stat().st_blocks * 512 < path.stat().st_size


def _patterns(kind: Kind, names: list[str]) -> tuple[str, ...]:
    if kind == "dataset":
        return ("*",)
    return _MODEL if any(name.endswith(".safetensors") for name in names) else (*_MODEL, *_OLDER_WEIGHTS)


def _skipped(kind: Kind) -> tuple[str, ...]:
    return () if kind == "dataset" else _OTHER_FORMS


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _damaged(wanted: _Wanted, folder: Path) -> list[str]:
    """Remove the files that are not what the hub has, and return their names."""
    found = []
    for name, size in wanted.sizes.items():
        path, digest = folder / name, wanted.digests.get(name)
        whole = path.is_file() and path.stat().st_size == size
        if not whole or (digest and file_digest(path) != f"sha256:{digest}"):
            path.unlink(missing_ok=True)
            found.append(name)
    return found


def _keep_only(wanted: _Wanted, folder: Path) -> None:
    """Remove the library's notes, and files that an interrupted pull of an older commit left."""
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if path.relative_to(folder).as_posix() not in wanted.sizes:
            path.unlink()


@contextmanager
def _watched(folder: Path, total: int, progress: Progress | None) -> Iterator[None]:
    """Report the bytes that are there once a second, whatever way the library brings them."""
    if progress is None:
        yield
        return
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            progress(min(tree_size(folder), total), total)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    progress(total, total)


def _token() -> str | bool:
    return os.environ.get("HF_TOKEN") or False
