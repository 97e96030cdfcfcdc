"""Models in a git repository, at one revision."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from mloc_dagster.sources.pulled import PullError

_SCHEMES = ("https://", "http://", "ssh://", "git://", "file://", "/", "git@")


def fill(url: str, revision: str | None, folder: Path) -> str:
    """Fetch one revision without its history into a folder and return the commit. Raises PullError."""
    if not url.startswith(_SCHEMES) or (revision or "").startswith("-"):
        raise PullError(f"{url!r} is no git address; write https://…, ssh://… or git@…, and a branch, tag or commit as revision")
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    _git(folder, "init", "-q")
    _git(folder, "fetch", "-q", "--depth", "1", "--", url, revision or "HEAD")
    _git(folder, "checkout", "-q", "FETCH_HEAD")
    commit = _git(folder, "rev-parse", "HEAD").strip()
    shutil.rmtree(folder / ".git")
    return commit


def _git(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": "https:http:ssh:git:file"}
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, env=environment, check=False)
    except FileNotFoundError:
        raise PullError("a git source needs the git command; install it") from None
    if done.returncode != 0:
        raise PullError(f"git {arguments[0]} failed: {(done.stderr.strip().splitlines() or [''])[-1]}; check the address and revision")
    return done.stdout
