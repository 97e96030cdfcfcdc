"""Models in a git repository, at one revision."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from mloc_dagster.sources.pulled import PullError, clear, shown

_SCHEMES = ("https://", "http://", "ssh://", "git://", "file://", "/", "git@")
_POINTER = b"version https://git-lfs.github.com/spec/"


def fill(url: str, revision: str | None, folder: Path) -> str:
    """Fetch one revision without its history into a folder and return the commit. Raises PullError.

    Links are written as plain files, so that none leads out of the folder.
    """
    if not url.startswith(_SCHEMES) or (revision or "").startswith("-"):
        wanted = "write https://…, ssh://… or git@…, and a branch, tag or full commit as revision"
        raise PullError(f"{shown(url)!r} at revision {revision!r} is no git address; {wanted}")
    clear(folder)
    _git(folder, url, "init", "-q")
    _git(folder, url, "fetch", "-q", "--depth", "1", "--no-tags", "--", url, revision or "HEAD")
    _git(folder, url, "-c", "core.symlinks=false", "checkout", "-q", "FETCH_HEAD")
    commit = _git(folder, url, "rev-parse", "HEAD").strip()
    shutil.rmtree(folder / ".git")
    _check_large_files(folder, url)
    return commit


def _git(folder: Path, url: str, *arguments: str) -> str:
    environment = os.environ | {"GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": "https:http:ssh:git:file"}
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    except FileNotFoundError:
        raise PullError("a git source needs the git command; install git") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [""])[-1].replace(url, shown(url))
        raise PullError(f"git cannot get {shown(url)}: {last}; check model.source.identifier and revision")
    return done.stdout


def _check_large_files(folder: Path, url: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size < 1024 and path.read_bytes().startswith(_POINTER):
            reason = f"{path.relative_to(folder)} is only a pointer to a large file"
            raise PullError(f"{shown(url)}: {reason}; install git-lfs (git lfs install) and try again")
