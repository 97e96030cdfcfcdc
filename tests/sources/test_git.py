"""Models from git repositories, with the real git."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mloc_dagster.sources import Cache, PullError, pull_model
from mloc_dagster.spec.model import ModelSource


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *who, "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits on main, the first tagged v1."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    for version in ("1", "2"):
        (folder / "config.json").write_text(f'{{"version": {version}}}')
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", version)
        git(folder, "tag", f"v{version}")
    return folder


def source(repository: Path, revision: str | None = None) -> ModelSource:
    return ModelSource(type="git", identifier=f"file://{repository}", revision=revision)


def test_the_newest_or_a_named_revision(repository: Path, cache: Cache) -> None:
    newest = pull_model(source(repository), cache=cache)
    older = pull_model(source(repository, "v1"), cache=cache)
    assert (newest.path / "config.json").read_text() == '{"version": 2}'
    assert (older.path / "config.json").read_text() == '{"version": 1}'
    assert newest.revision == git(repository, "rev-parse", "v2") and older.revision == git(
        repository, "rev-parse", "v1"
    )
    assert not (newest.path / ".git").exists()
    assert pull_model(source(repository, "v1"), cache=cache).from_cache


def test_a_link_does_not_lead_out(repository: Path, cache: Cache) -> None:
    (repository / "notes").symlink_to("/etc/passwd")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "link")
    notes = pull_model(source(repository), cache=cache).path / "notes"
    assert not notes.is_symlink() and notes.read_text() == "/etc/passwd"


def test_a_pointer_to_a_large_file_is_no_weights(repository: Path, cache: Cache) -> None:
    (repository / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "pointer")
    with pytest.raises(PullError, match=r"model\.safetensors is only a pointer to a large file; install git-lfs"):
        pull_model(source(repository), cache=cache)


@pytest.mark.parametrize(
    ("identifier", "revision"),
    [("--upload-pack=touch /tmp/mloc-x", None), ("ext::sh -c touch% /tmp/mloc-x", None), ("-x", None),
     ("file:///nothing", "--upload-pack=touch /tmp/mloc-x")],
)  # fmt: skip
def test_what_looks_like_an_option_is_refused(cache: Cache, identifier: str, revision: str | None) -> None:
    with pytest.raises(PullError, match="is no git address"):
        pull_model(ModelSource(type="git", identifier=identifier, revision=revision), cache=cache)
    assert not Path("/tmp/mloc-x").exists()


def test_what_is_not_there_is_said_without_secrets(repository: Path, cache: Cache) -> None:
    with pytest.raises(
        PullError, match=r"git cannot get file:///.*repository: .*v9.*; check model\.source\.identifier"
    ):
        pull_model(source(repository, "v9"), cache=cache)
    address = "http://me:hunter2@127.0.0.1:9/x.git"
    with pytest.raises(PullError) as error:
        pull_model(ModelSource(type="git", identifier=address), cache=cache)
    assert "hunter2" not in str(error.value)
