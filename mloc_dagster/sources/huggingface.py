"""Models and data sets of a hub that speaks the Hugging Face API (HF_ENDPOINT, HF_TOKEN from the environment)."""

from __future__ import annotations

from pathlib import Path

from mloc_dagster.sources.pulled import Progress, PullError, tree_size

_WEIGHTS = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "tokenizer*"]
_OLD_WEIGHTS = ["*.bin"]


def fill(repo: str, revision: str | None, kind: str, folder: Path, progress: Progress | None) -> str | None:
    """Download a repository (`kind` is model or dataset) into a folder; files that are whole already stay.

    Returns the commit. Raises PullError.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        commit, patterns = _choose(repo, revision, kind)
        snapshot_download(repo, repo_type=kind, revision=commit, local_dir=folder, allow_patterns=patterns)
    except GatedRepoError:
        raise PullError(f"{kind} {repo} is gated; accept its terms on the hub and export HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise PullError(f"{kind} {repo} is not on the hub, or is private; check the name, or export HF_TOKEN") from None
    except RevisionNotFoundError:
        raise PullError(f"{kind} {repo} has no revision {revision!r}; check model.source.revision") from None
    except LocalEntryNotFoundError as error:
        raise PullError(f"{kind} {repo}: the hub cannot be reached ({_short(error)}); {_OFFLINE}") from None
    except HfHubHTTPError as error:
        raise PullError(f"{kind} {repo}: the hub answered {_short(error)}; try again later") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise PullError(f"{kind} {repo}: {_short(error)}; {_OFFLINE}") from None
    except Exception as error:  # the hub's HTTP library raises its own kinds when the network is down
        raise PullError(f"{kind} {repo}: the hub cannot be reached ({_short(error)}); {_OFFLINE}") from None
    if progress:
        progress(tree_size(folder), tree_size(folder))
    return commit


_OFFLINE = "check the network, or set mirror: (MLOC_MIRROR) to a folder with models/<org>/<name>"


def _choose(repo: str, revision: str | None, kind: str) -> tuple[str | None, list[str] | None]:
    from huggingface_hub import HfApi

    info = HfApi().repo_info(repo, repo_type=kind, revision=revision)
    if kind != "model":
        return info.sha, None
    names = [file.rfilename for file in info.siblings or ()]
    safe = any(name.endswith(".safetensors") for name in names)
    return info.sha, _WEIGHTS if safe else [*_WEIGHTS, *_OLD_WEIGHTS]


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:200]
